//! Names: whatever server a task asks, it is told only what its endpoints are called by, and where those may be.

mod uses;

use anyhow::{Context as _, Result, ensure};

use crate::harness::options::Options;
use crate::harness::run::{Ran, Task};
use crate::harness::world::{Lab, World};
use crate::{Test, on_every_tier};

const NAMED: &str = "test/named";
const WILD: &str = "test/wild";
const PUBLIC: &str = "test/public";
/// Nobody answers there: whoever does, stands in for it.
const ANY: &str = "192.0.2.53:53";
const ANY6: &str = "[2001:db8::53]:53";

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("names::any_server_over_udp", |lab| led(lab, &["dns-udp", ANY])),
        ("names::any_server_over_udp_v6", |lab| led(lab, &["dns-udp", ANY6])),
        ("names::any_server_over_tcp", |lab| led(lab, &["dns-tcp", ANY])),
        ("names::any_server_over_tcp_v6", |lab| led(lab, &["dns-tcp", ANY6])),
        ("names::edns", |lab| led(lab, &["dns-edns", ANY])),
        ("names::like_musl", |lab| led(lab, &["dns-musl", ANY, "198.51.100.53:53"])),
        ("names::like_go", |lab| led(lab, &["dns-go", ANY])),
        ("names::in_a_namespace_of_its_own", |lab| led_in(lab, &["netns", "netns-up"], &["dns-udp", ANY])),
        ("names::in_a_namespace_of_its_own_over_tcp", |lab| led_in(lab, &["netns", "netns-up"], &["dns-tcp", ANY])),
        ("names::in_a_users_namespace", |lab| led_in(lab, &["userns", "netns", "netns-up"], &["dns-udp", ANY])),
        ("names::a_server_that_answers_hears_nothing", a_server_that_answers_hears_nothing),
        ("names::mapped_servers", mapped_servers),
        ("names::a_cut_answer_is_fetched_over_tcp", a_cut_answer_is_fetched_over_tcp),
        ("names::wildcards_aliases_and_negatives", wildcards_aliases_and_negatives),
        ("names::private_addresses_are_not_given", private_addresses_are_not_given),
        ("names::forged_answers_are_passed_over", forged_answers_are_passed_over),
        ("names::malformed_questions", malformed_questions),
        ("names::types_that_carry_anything", types_that_carry_anything),
        ("names::too_long_and_too_many", too_long_and_too_many),
        ("names::audit_mode_lets_through", audit_mode_lets_through),
        ("names::a_connection_by_name", uses::a_connection_by_name),
        ("names::a_name_that_comes_later", uses::a_name_that_comes_later),
        ("names::another_task_does_not_profit", uses::another_task_does_not_profit),
        ("names::a_revoked_task_asks_nothing", a_revoked_task_asks_nothing),
        ("names::the_resolver_hears_nobody_else", the_resolver_hears_nobody_else),
        ("names::getent", uses::getent),
        ("names::curl", uses::curl),
        ("names::hosts_file", uses::hosts_file),
    ])
}

/// With daemons of their own.
pub(crate) fn own_tests() -> Vec<Test> {
    on_every_tier([
        ("names::too_often", too_often),
        ("names::a_name_ends_and_its_connection_goes_on", uses::a_name_ends_and_its_connection_goes_on),
    ])
}

fn led(lab: &Lab, ask: &[&str]) -> Result<()> {
    led_in(lab, &[], ask)
}

/// What waits for the daemon to set up a resolver in a namespace of its own waits in vain where the machine is busy, and is
/// refused: the next attempt is another.
const ATTEMPTS: usize = 3;

fn asked<'w>(task: impl Fn() -> Task<'w>, words: &[&str]) -> Result<Ran> {
    let mut ran = task().run(words)?;
    for _ in 1..ATTEMPTS {
        if ran.lines != ["errno EPERM"] {
            break;
        }
        ran = task().run(words)?;
    }
    Ok(ran)
}

/// A granted name is answered, as if by the server that was asked; another is refused. Each with its record.
fn led_in(lab: &Lab, wrappers: &[&str], ask: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let words = |name| [wrappers, ask, &[name, "A"]].concat();
    let refused = asked(|| world.task(), &words("api.public.example"))?;
    refused.expect(&["Refused", "ok"]).context("without a grant")?;
    let record = world.decision(refused.task()?, "resolve", "deny", "policy")?;
    record.expect_policy("baseline/connect-beyond-grant")?;
    record.expect("/resource/name", "api.public.example")?;
    record.expect("/resource/record_type", "A")?;
    ensure!(record.array("/resource/labels").iter().any(|label| label == PUBLIC), "labels in {}", record.0);
    let allowed = asked(|| world.task().connect(PUBLIC), &words("Api.Public.example"))?;
    allowed.expect(&["NoError 192.0.2.10 192.0.2.11", "ok"]).context("with a grant")?;
    world.decision(allowed.task()?, "resolve", "allow", "policy")?.expect("/resource/name", "api.public.example")
}

/// What it answers, and whether it came to the record that is expected.
fn expect_table(world: &World, grant: &str, cases: &[(&str, &str, &str, &str, &str)]) -> Result<()> {
    let mut task = world.task().connect(grant).session()?;
    let id = task.task()?;
    for (name, kind, answer, effect, reason) in cases {
        let got = task.ask(&["dns-tcp", ANY, name, kind])?;
        ensure!(got == [*answer, "ok"], "{name} {kind}: {got:?}, not {answer}");
        // The host is what counts, not the service before it.
        let asked: Vec<&str> = name.split('.').skip_while(|part| part.starts_with('_')).collect();
        let asked = asked.join(".").to_ascii_lowercase();
        world.daemon.record(&format!("{effect} {reason} of {asked}"), |record| {
            record.task() == id
                && record.is_decision("resolve", effect, reason)
                && record.text("/resource/name") == asked
                && record.text("/resource/record_type") == *kind
        })?;
        println!("    {name} {kind}: {answer} ({effect}, {reason})");
    }
    task.close().map(drop)
}

fn wildcards_aliases_and_negatives(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    expect_table(
        &world,
        WILD,
        &[
            ("a.wild.example", "A", "NoError 192.0.2.10 192.0.2.11", "allow", "policy"),
            ("a.b.wild.example", "A", "NoError 192.0.2.10 192.0.2.11", "allow", "policy"),
            ("A.WILD.EXAMPLE", "AAAA", "NoError 2001:db8::10", "allow", "policy"),
            ("wild.example", "A", "Refused", "deny", "policy"),
            ("notwild.example", "A", "Refused", "deny", "policy"),
            ("a.wild.example.com", "A", "Refused", "deny", "policy"),
            ("api.public.example", "A", "Refused", "deny", "policy"),
            ("alias.wild.example", "A", "NoError 192.0.2.10 192.0.2.11", "allow", "policy"),
            ("alias-twice.wild.example", "A", "NoError 192.0.2.10 192.0.2.11", "allow", "policy"),
            ("alias-private.wild.example", "A", "Refused", "deny", "private_answer"),
            ("alias-metadata.wild.example", "A", "Refused", "deny", "private_answer"),
            ("loop.wild.example", "A", "ServFail", "deny", "malformed"),
            ("loop-self.wild.example", "A", "ServFail", "deny", "malformed"),
            ("dangling.wild.example", "A", "NoError", "allow", "policy"),
            ("nx.wild.example", "A", "NXDomain", "allow", "policy"),
            ("empty.wild.example", "A", "NoError", "allow", "policy"),
            ("fail.wild.example", "A", "ServFail", "deny", "error"),
            ("_8443._https.a.wild.example", "HTTPS", "NoError", "allow", "policy"),
        ],
    )
}

fn private_addresses_are_not_given(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let v4 = [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
    ];
    let names = v4.map(|address| format!("v4-{}.wild.example", address.replace('.', "-")));
    let mut cases: Vec<_> =
        names.iter().map(|name| (name.as_str(), "A", "Refused", "deny", "private_answer")).collect();
    let v6 = [
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:a00:1::",
        "::127.0.0.1",
    ];
    let names = v6.map(|address| {
        let bits = address.parse::<std::net::Ipv6Addr>().map_or(0, std::net::Ipv6Addr::to_bits);
        format!("v6-{bits:032x}.wild.example")
    });
    cases.extend(names.iter().map(|name| (name.as_str(), "AAAA", "Refused", "deny", "private_answer")));
    cases.extend([
        ("mixed.wild.example", "A", "NoError 192.0.2.20", "allow", "policy"),
        ("mixed.wild.example", "A", "NoError 192.0.2.20", "deny", "private_answer"),
        ("hints.wild.example", "HTTPS", "NoError 192.0.2.30", "allow", "policy"),
        ("hints.wild.example", "HTTPS", "NoError 192.0.2.30", "deny", "private_answer"),
    ]);
    expect_table(&world, WILD, &cases)?;
    // Where the catalogue says so, they are.
    expect_table(
        &world,
        NAMED,
        &[
            ("live.named.example", "A", "NoError 127.0.0.1", "allow", "policy"),
            ("live.named.example", "AAAA", "NoError ::1", "allow", "policy"),
        ],
    )
}

fn forged_answers_are_passed_over(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let right = "NoError 192.0.2.10 192.0.2.11";
    expect_table(
        &world,
        WILD,
        &[
            ("wrong-id.wild.example", "A", right, "allow", "policy"),
            ("wrong-question.wild.example", "A", right, "allow", "policy"),
            ("off-path.wild.example", "A", right, "allow", "policy"),
            ("no-response.wild.example", "A", right, "allow", "policy"),
            ("wrong-id-only.wild.example", "A", "ServFail", "deny", "timeout"),
            ("wrong-question-only.wild.example", "A", "ServFail", "deny", "timeout"),
            ("silent.wild.example", "A", "ServFail", "deny", "timeout"),
        ],
    )
}

fn malformed_questions(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut task = world.task().connect(WILD).session()?;
    let id = task.task()?;
    task.expect(&["dns-prefixes", ANY, "a.wild.example"], &["ok"])?;
    // id 1, flags, counts; then the question `a.`, A, IN.
    let question = "0161 00 0001 0001".replace(' ', "");
    for (what, head, tail, answer) in [
        ("no question", "0001 0100 0000 0000 0000 0000", "", "FormErr"),
        ("two questions", "0001 0100 0002 0000 0000 0000", "0161000001000101610000010001", "FormErr"),
        ("more questions than bytes", "0001 0100 ffff 0000 0000 0000", &question, "FormErr"),
        ("an answer in it", "0001 0100 0001 0001 0000 0000", &question, "FormErr"),
        ("bytes behind it", "0001 0100 0001 0000 0000 0000", "0161000001000100", "FormErr"),
        ("a pointer to itself", "0001 0100 0001 0000 0000 0000", "c00c00010001", "FormErr"),
        ("a notification", "0001 2000 0001 0000 0000 0000", &question, "NotImp"),
        ("another class", "0001 0100 0001 0000 0000 0000", "016100 0001 0003", "Refused"),
        ("a part with a dot", "0001 0100 0001 0000 0000 0000", "03612e62 00 0001 0001", "Refused"),
        ("a part with a space", "0001 0100 0001 0000 0000 0000", "03612062 00 0001 0001", "Refused"),
        ("an answer", "0001 8180 0001 0000 0000 0000", &question, "silence"),
    ] {
        let hex = format!("{head}{tail}").replace(' ', "");
        task.expect(&["dns-raw", ANY, &hex], &[answer, "ok"]).context(what)?;
    }
    world.decision(&id, "resolve", "deny", "malformed")?;
    task.expect(&["dns-udp", ANY, "a.wild.example", "A"], &["NoError 192.0.2.10 192.0.2.11", "ok"])
}

fn types_that_carry_anything(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let refused = |kind| ("a.wild.example", kind, "Refused", "deny", "unsupported_path");
    expect_table(&world, WILD, &["TXT", "NULL", "ANY", "MX", "SRV", "PTR", "NS", "SOA"].map(refused))
}

/// What an agent can say with names of its own choosing is bounded; the name server hears no more of it.
fn too_long_and_too_many(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let long = format!("{}.{}.{}.wild.example", "a".repeat(60), "b".repeat(60), "c".repeat(60));
    let deep = format!("{}.wild.example", ["a"; 20].join("."));
    expect_table(
        &world,
        WILD,
        &[
            (long.as_str(), "A", "Refused", "deny", "rate_limited"),
            (deep.as_str(), "A", "Refused", "deny", "rate_limited"),
        ],
    )?;
    world.names.asked();
    let mut task = world.task().connect(WILD).session()?;
    let said = task.ask(&["dns-many", ANY, "nx-{}.wild.example", "120"])?;
    ensure!(said == ["NXDomain 60 Refused 60", "ok"], "{said:?}");
    ensure!(world.names.asked().len() == 60, "the name server heard of others");
    // What the catalogue spells out says nothing.
    task.expect(&["dns-many", ANY, "wild.example", "5"], &["Refused 5", "ok"])?;
    task.close().map(drop)
}

fn too_often(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default().setting("dns_rate = 1").setting("dns_burst = 5"))?;
    let words = ["dns-many", ANY, "api.public.example", "200"];
    let mut task = world.task().connect(PUBLIC).session()?;
    let mut other = world.task().connect(PUBLIC).session()?;
    let said = task.ask(&words)?.concat();
    let answered: u32 = said.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
    ensure!(said.starts_with("NoError ") && (5..200).contains(&answered), "{said}");
    world.decision(&task.task()?, "resolve", "deny", "rate_limited")?;
    // Another task has its own measure.
    other.expect(&["dns-udp", ANY, "api.public.example", "A"], &["NoError 192.0.2.10 192.0.2.11", "ok"])?;
    other.close().map(drop)
}

fn audit_mode_lets_through(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().audit().run(&["dns-udp", ANY, "api.public.example", "A"])?;
    ran.expect(&["NoError 192.0.2.10 192.0.2.11", "ok"])?;
    world.decision(ran.task()?, "resolve", "would_deny", "policy")?;
    let ran = world.task().audit().connect(WILD).run(&["dns-udp", ANY, "v4-10-0-0-1.wild.example", "A"])?;
    ran.expect(&["NoError 10.0.0.1", "ok"])?;
    world.decision(ran.task()?, "resolve", "would_deny", "private_answer").map(drop)
}

/// The one that a task names stands by; unmarked processes talk to it as ever.
fn a_server_that_answers_hears_nothing(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let server = world.names.here.to_string();
    for way in ["dns-udp", "dns-tcp", "dns-edns", "dns-go"] {
        let words = [way, &server, "api.public.example", "A"];
        world.unmarked(&words)?.expect(&["NoError 192.0.2.10 192.0.2.11", "ok"]).context("without a mark")?;
        ensure!(world.names.asked_elsewhere().len() == 1, "the unmarked question did not arrive");
        world.task().connect(PUBLIC).run(&words)?.expect(&["NoError 192.0.2.10 192.0.2.11", "ok"])?;
        ensure!(world.names.asked_elsewhere().is_empty(), "the server was asked by a task");
    }
    Ok(())
}

fn mapped_servers(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["dns-shared", &world.names.here.to_string(), "api.public.example"];
    let answer = "NoError 192.0.2.10 192.0.2.11";
    world.unmarked(&words)?.expect(&[answer, answer, "ok"]).context("without a mark")?;
    world.names.asked_elsewhere();
    world.task().connect(PUBLIC).run(&words)?.expect(&[answer, answer, "ok"])?;
    ensure!(world.names.asked_elsewhere().is_empty(), "the server was asked by a task");
    Ok(())
}

fn a_cut_answer_is_fetched_over_tcp(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ask = |way| world.task().connect(WILD).run(&[way, ANY, "big.wild.example", "A"]);
    ask("dns-udp")?.expect(&["NoError cut", "ok"])?;
    ask("dns-go")?.expect(&["NoError 60 addresses", "ok"])?;
    ask("dns-edns")?
        .expect(&["NoError 60 addresses", "ok"])
        .or_else(|_| ask("dns-tcp")?.expect(&["NoError 60 addresses", "ok"]))
}

fn a_revoked_task_asks_nothing(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut task = world.task().connect(WILD).session()?;
    let id = task.task()?;
    task.expect(&["dns-udp", ANY, "a.wild.example", "A"], &["NoError 192.0.2.10 192.0.2.11", "ok"])?;
    world.daemon.ask(&["task", "revoke", &id])?;
    world.names.asked();
    for way in ["dns-udp", "dns-tcp", "dns-edns"] {
        task.expect(&[way, ANY, "b.wild.example", "A"], &["errno EPERM"])?;
    }
    ensure!(world.names.asked().is_empty(), "the name server was asked");
    world.decision(&id, "socket", "deny", "revoked").map(drop)
}

/// The ports at which the daemon answers are open to all, and tell nobody anything but whom they were led to.
fn the_resolver_hears_nobody_else(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let daemon = world.daemon.pid();
    let ports = udp_ports(daemon.as_raw())?;
    ensure!(!ports.is_empty(), "the daemon listens nowhere");
    world.names.asked();
    let mut refused = 0;
    for port in ports {
        let server = format!("127.0.0.1:{port}");
        let question = "00010100000100000000000003617069067075626c6963076578616d706c650000010001";
        let said = world.unmarked(&["dns-raw", &server, question])?;
        // What is no resolver's says nothing: the canary has a port of its own.
        ensure!(said.lines == ["Refused", "ok"] || said.lines == ["silence", "ok"], "{said:?}");
        refused += usize::from(said.lines == ["Refused", "ok"]);
        let words = ["dns-udp", &server, "api.public.example", "A"];
        // A task that goes there by itself is decided about as for any other destination.
        world.task().connect(PUBLIC).run(&words)?.expect_refused()?;
    }
    ensure!(refused == 1, "{refused} ports are the resolver's");
    ensure!(world.names.asked().is_empty(), "the name server was asked");
    Ok(())
}

/// UDP ports on 127.0.0.1 that belong to a process.
fn udp_ports(pid: i32) -> Result<Vec<u16>> {
    let mut own = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let text = target.to_string_lossy().into_owned();
        own.extend(text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
    }
    let table = std::fs::read_to_string("/proc/net/udp")?;
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Those that are connected are the daemon's own questions.
    let rows = rows.filter(|row| row.get(2) == Some(&"00000000:0000"));
    let ours = rows.filter(|row| row.get(9).is_some_and(|inode| own.iter().any(|own| own == inode)));
    let local = ours.filter_map(|row| row.get(1)?.strip_prefix("0100007F:").map(str::to_owned));
    Ok(local.filter_map(|hex| u16::from_str_radix(&hex, 16).ok()).collect())
}
