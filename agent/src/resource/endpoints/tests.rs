//! Tests of the endpoints catalogue.

use proptest::prelude::*;

use super::*;

fn load(site: &str) -> Result<Endpoints, TextErrors> {
    Endpoints::load(SHIPPED, Some((Path::new("endpoints.toml"), site)))
}

fn labels(endpoints: &Endpoints, address: &str, port: u16, protocol: Protocol) -> Vec<String> {
    let labels = endpoints.labels_for(address.parse().unwrap(), port, protocol);
    labels.iter().map(ToString::to_string).collect()
}

fn faults(site: &str) -> Vec<String> {
    load(site).unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn shipped_destinations_have_their_names() {
    let endpoints = load("").unwrap();
    let cases = [
        ("127.0.0.1", 80, "net/loopback"),
        ("0.0.0.0", 80, "net/loopback"),
        ("::", 80, "net/loopback"),
        ("::1", 80, "net/loopback"),
        ("::ffff:127.8.8.8", 80, "net/loopback"),
        ("127.0.0.53", 53, "net/dns net/loopback"),
        ("10.1.2.3", 443, "net/internal/private"),
        ("172.31.255.255", 443, "net/internal/private"),
        ("172.32.0.0", 443, "net/external/unknown"),
        ("fd12::1", 443, "net/internal/private"),
        ("100.64.0.1", 443, "net/internal/shared"),
        ("100.100.100.200", 80, "net/internal/shared net/metadata/alibaba"),
        ("169.254.169.254", 80, "net/link-local net/metadata"),
        ("::ffff:169.254.169.254", 80, "net/link-local net/metadata"),
        ("fd00:ec2::254", 80, "net/internal/private net/metadata/aws"),
        ("168.63.129.16", 80, "net/metadata/azure"),
        ("fd20:ce::254", 80, "net/internal/private net/metadata/gcp"),
        ("224.0.0.251", 5353, "net/multicast"),
        ("255.255.255.255", 67, "net/broadcast net/reserved"),
        ("8.8.8.8", 53, "net/dns net/external/unknown"),
        ("8.8.8.8", 443, "net/external/unknown"),
        ("2001:4860:4860::8888", 443, "net/external/unknown"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1, "net/multicast"),
    ];
    for (address, port, expected) in cases {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(labels(&endpoints, address, port, protocol).join(" "), expected, "{address}");
        }
    }
}

#[test]
fn translated_addresses_have_the_labels_of_what_is_inside() {
    let endpoints = load("").unwrap();
    for address in ["64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe"] {
        assert_eq!(labels(&endpoints, address, 80, Protocol::Tcp), ["net/link-local", "net/metadata"], "{address}");
    }
    assert_eq!(labels(&endpoints, "64:ff9b::808:808", 80, Protocol::Tcp), [UNKNOWN]);
}

#[test]
fn a_site_adds_narrows_and_disables() {
    let endpoints = load(
        "disable = ['private']\n[[endpoint]]\nname = 'db'\nlabels = ['net/db']\ncidrs = ['10.0.0.5']\nports = [5432, '6000-6001']\nprotocols = ['tcp']",
    )
    .unwrap();
    assert_eq!(labels(&endpoints, "10.0.0.5", 5432, Protocol::Tcp), ["net/db"]);
    assert_eq!(labels(&endpoints, "10.0.0.5", 6001, Protocol::Tcp), ["net/db"]);
    assert_eq!(labels(&endpoints, "10.0.0.5", 6002, Protocol::Tcp), [UNKNOWN]);
    assert_eq!(labels(&endpoints, "10.0.0.5", 5432, Protocol::Udp), [UNKNOWN]);
    assert_eq!(labels(&endpoints, "10.0.0.6", 5432, Protocol::Tcp), [UNKNOWN]);
}

#[test]
fn all_labels_and_those_above_are_told() {
    let endpoints = load("[[endpoint]]\nname = 'x'\nlabels = ['net/a/b']\nports = [1]").unwrap();
    for label in ["net", "net/a", "net/a/b", "net/external", UNKNOWN, "net/metadata/aws"] {
        assert!(endpoints.labels().contains(&label.parse::<Label>().unwrap()), "{label}");
    }
}

const NAMED: &str = "[[endpoint]]
name = 'api'
labels = ['net/api']
names = ['api.example.com']
ports = [443]
protocols = ['tcp']
[[endpoint]]
name = 'content'
labels = ['net/content']
names = ['*.example.com', 'example.org']
[[endpoint]]
name = 'intranet'
labels = ['net/intranet']
names = ['*.corp.example']
ports = ['8000-9000']
private = true
";

#[test]
fn names_give_their_labels_to_what_a_task_knows_by_them() {
    let endpoints = load(NAMED).unwrap();
    let of = |hosts: &[&str], address: &str, port| {
        let hosts = hosts.iter().map(|host| Arc::from(*host)).collect();
        let labels = endpoints.labels_of(address.parse().unwrap(), &hosts, port, Protocol::Tcp);
        labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    for (hosts, address, port, expected) in [
        (&["api.example.com"][..], "192.0.2.1", 443, "net/api net/content"),
        (&["api.example.com"], "192.0.2.1", 80, "net/content"),
        (&["api.example.com"], "10.0.0.1", 443, "net/api net/content net/internal/private"),
        (&["a.b.example.com"], "192.0.2.1", 443, "net/content"),
        (&["example.com"], "192.0.2.1", 443, UNKNOWN),
        (&["notexample.com"], "192.0.2.1", 443, UNKNOWN),
        (&["example.org"], "192.0.2.1", 443, "net/content"),
        (&["www.example.org"], "192.0.2.1", 443, UNKNOWN),
        (&["nobody.example", "example.org"], "192.0.2.1", 443, "net/content"),
        (&["x.corp.example"], "192.0.2.1", 443, UNKNOWN),
        (&["x.corp.example"], "192.0.2.1", 8080, "net/intranet"),
        (&[], "192.0.2.1", 443, UNKNOWN),
    ] {
        assert_eq!(of(hosts, address, port), expected, "{hosts:?} {address}:{port}");
    }
}

#[test]
fn the_catalogue_says_where_a_name_is_asked_about() {
    let endpoints = load(NAMED).unwrap();
    let api = endpoints.carried("api.example.com");
    assert!(api.spelt_out && !api.private);
    assert_eq!(api.ends, [(Protocol::Tcp, 443), (Protocol::Tcp, 80), (Protocol::Udp, 443)]);
    let intranet = endpoints.carried("x.corp.example");
    assert!(!intranet.spelt_out && intranet.private);
    let ports: Vec<u16> = intranet.ends.iter().filter(|(p, _)| *p == Protocol::Tcp).map(|(_, port)| *port).collect();
    assert_eq!(ports, [8000, 9000], "the ends of a long range");
    let unknown = endpoints.carried("nobody.example");
    assert_eq!((unknown.labels.len(), unknown.ends.len(), unknown.private), (1, 3, false));
    assert!(unknown.labels.contains(&UNKNOWN.parse::<Label>().unwrap()));
}

#[test]
fn addresses_that_names_do_not_have() {
    let endpoints = load("disable = ['private', 'loopback', 'link-local', 'metadata', 'multicast']").unwrap();
    for private in [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "168.63.129.16",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:a00:1::",
        "2002:7f00:1::1",
        "::a9fe:a9fe",
        "::10.0.0.1",
    ] {
        assert!(endpoints.is_private(private.parse().unwrap()), "{private}");
    }
    for public in ["192.0.2.1", "8.8.8.8", "172.32.0.1", "2001:db8::1", "64:ff9b::808:808", "2002:808:808::"] {
        assert!(!endpoints.is_private(public.parse().unwrap()), "{public}");
    }
}

#[test]
fn faults_of_names_are_told() {
    let site = "[[endpoint]]\nname = 'a'\nlabels = ['net/a']\nnames = ['*', 'a.*.b', 'A.example', 'a.example.', '', 'a..b', '*.ok.example']\n\
        [[endpoint]]\nname = 'b'\nlabels = ['net/b']\nnames = ['x.example']\ncidrs = ['192.0.2.0/24']\n\
        [[endpoint]]\nname = 'c'\nlabels = ['net/c']\nports = [1]\nprivate = true\n";
    let expected = [
        "endpoints.toml:4:10: `*` is every name",
        "endpoints.toml:4:15: `a.*.b` has a `*`",
        "endpoints.toml:4:24: `A.example` is not a name",
        "endpoints.toml:4:37: `a.example.` is not a name",
        "endpoints.toml:4:51: `` is not a name",
        "endpoints.toml:4:55: `a..b` is not a name",
        "endpoints.toml:5:1: the entry has both `names` and `cidrs`",
        "endpoints.toml:10:1: the entry has `private` and no `names`",
    ];
    let found = faults(site);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

#[test]
fn every_fault_names_line_reason_and_next_step() {
    let site = "[[endpoint]]\nname = 'a'\nlabels = ['net/a']\ncidrs = ['10.0.0.1/8', 'nowhere', '::ffff:10.0.0.0/104', '::ffff:1.2.3.4']\n\
        ports = [0, 65536, -1, '9-8', '']\nprotocols = ['sctp']\n[[endpoint]]\nname = 'b'\nlabels = []\nport = [1]\n[[endpoint]]\nname = 'dns'\nlabels = ['X']\nports = [1]\n";
    let found = faults(site);
    let expected = [
        "endpoints.toml:4:10: `10.0.0.1/8` has bits beyond its prefix; write `10.0.0.0/8`",
        "endpoints.toml:4:24: `nowhere` is neither",
        "endpoints.toml:4:35: `::ffff:10.0.0.0/104` is IPv4 mapped",
        "endpoints.toml:4:58: `::ffff:1.2.3.4` is IPv4 mapped",
        "endpoints.toml:5:13: `65536` is neither",
        "endpoints.toml:5:20: `-1` is neither",
        "endpoints.toml:5:24: `9-8` is neither",
        "endpoints.toml:5:31: `` is neither",
        "endpoints.toml:6:14: `sctp` is no protocol",
        "endpoints.toml:7:1: the entry has no `labels`",
        "endpoints.toml:7:1: the entry matches every destination",
        "endpoints.toml:10:1: unknown key `port`; did you mean `ports`?",
        "endpoints.toml:12:8: an entry named `dns` exists already",
        "endpoints.toml:13:11: `X` is not a label",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

/// The definition, entry by entry.
fn naive(entries: &[Entry<Match>], address: IpAddr, port: u16, protocol: Protocol) -> LabelSet {
    let inside = |entry: &Match| entry.cidrs.is_empty() || entry.cidrs.iter().any(|cidr| cidr.contains(&address));
    let at_port = |entry: &Match| entry.ports.is_empty() || entry.ports.iter().any(|range| range.contains(&port));
    let by = |entry: &Match| entry.protocols.is_empty() || entry.protocols.contains(&protocol);
    let matching = entries.iter().filter(|entry| inside(&entry.body) && at_port(&entry.body) && by(&entry.body));
    let matching: Vec<_> = matching.collect();
    let mut labels: LabelSet = matching.iter().flat_map(|entry| entry.labels.iter().cloned()).collect();
    if !matching.iter().any(|entry| !entry.body.cidrs.is_empty()) {
        labels.insert(UNKNOWN.parse().unwrap());
    }
    labels
}

/// Few distinct bits, so that ranges nest and touch.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = (0_u32..16, 0_u32..4).prop_map(|(high, low)| IpAddr::from(((8 << 28) + (high << 24) + low).to_be_bytes()));
    let v6 =
        (0_u128..16, 0_u128..4).prop_map(|(high, low)| IpAddr::from(((0x3 << 124) + (high << 64) + low).to_be_bytes()));
    prop_oneof![v4, v6]
}

fn cidr() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..=128).prop_map(|(address, prefix)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix % (most + 1)).unwrap().trunc()
    })
}

fn entry() -> impl Strategy<Value = Entry<Match>> {
    let ports = prop::collection::vec((0_u16..6, 0_u16..6).prop_map(|(a, b)| a.min(b)..=a.max(b)), 0..3);
    let protocols = prop::sample::subsequence(vec![Protocol::Tcp, Protocol::Udp], 0..=2);
    (prop::collection::vec(cidr(), 0..4), ports, protocols, "[a-d]").prop_map(|(cidrs, ports, protocols, label)| {
        Entry {
            name: "x".into(),
            labels: Arc::new(LabelSet::from([label.parse().unwrap()])),
            body: Match { cidrs, ports, protocols, ..Match::default() },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn answers_agree_with_looking_at_every_entry(
        entries in prop::collection::vec(entry(), 0..6),
        questions in prop::collection::vec((address(), 0_u16..7, any::<bool>()), 1..30),
    ) {
        let endpoints = Endpoints::build(&entries);
        for (address, port, tcp) in questions {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let found = endpoints.labels_for(address, port, protocol);
            prop_assert_eq!(&*found, &naive(&entries, address, port, protocol), "{}:{}", address, port);
        }
    }
}
