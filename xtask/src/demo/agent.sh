# The demo's agent: tries what its arguments name, by sub-processes, and says in one line what came of each.
# It needs bash, and uses curl and python where xtask found them.

# Runs a command and shows its last words.
try() {
    local what=$1 said
    shift
    said=$("$@" 2>&1 </dev/null)
    said=${said##*$'\n'}
    printf '%-22s %s\n' "$what" "${said#"$0: "}"
}

# Sends an HTTP request by bash alone: address, port, what to ask for.
request() {
    exec 3<>"/dev/tcp/$1/$2" || return
    printf 'GET %s HTTP/1.0\r\n\r\n' "$3" >&3
    cat <&3
}

web() {
    if [ -n "$CURL" ]; then
        "$CURL" -q -sS --max-time 5 --noproxy '*' "http://$2:$WEB/"
    else
        request "$1" "$WEB" /
    fi
}

proxied() {
    if [ -n "$CURL" ]; then
        "$CURL" -q -sS --max-time 5 --proxytunnel --proxy "http://127.0.0.1:$PROXY" "http://127.0.0.1:$WEB/proxied"
    else
        request 127.0.0.1 "$PROXY" "http://127.0.0.1:$WEB/proxied"
    fi
}

# With python the datagram goes out of a socket that is not connected, with bash out of one that is.
datagram() {
    if [ -n "$PYTHON" ]; then
        "$PYTHON" -c 'import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b"hello\n", ("127.0.0.1", int(sys.argv[1])))
print(s.recv(100).decode().strip())' "$ECHO"
    else
        exec 3<>"/dev/udp/127.0.0.1/$ECHO" && echo hello >&3 && head -n 1 <&3
    fi
}

attempt() {
    case $1 in
    web4) try "http over IPv4" web 127.0.0.1 127.0.0.1 ;;
    web6) try "http over IPv6" web ::1 '[::1]' ;;
    proxy) try "http by the proxy" proxied ;;
    udp) try "udp" datagram ;;
    ssh) try "~/.ssh/id_ed25519" cat "$HOME/.ssh/id_ed25519" ;;
    netrc) try "~/.netrc" cat "$HOME/.netrc" ;;
    esac
}

# Whether the web server can be reached and answers.
knock() {
    exec 3<>"/dev/tcp/127.0.0.1/$WEB" && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r -t 2 <&3
}

# Asks the web server again and again until that is refused, then sends on a connection that was open before.
until_refused() {
    exec 4<>"/dev/tcp/127.0.0.1/$WEB"
    attempt web4
    for _ in {1..300}; do
        knock 2>/dev/null || break
        sleep 0.1
    done
    attempt web4
    printf 'GET / HTTP/1.0\r\n\r\n' >&4
    read -r -t 1 answer <&4
    printf '%-22s %s\n' "the open connection" "${answer:-no answer within a second}"
}

# The same agent again in a session of its own, as an orphan: it goes on once whoever started it is gone.
orphan() {
    (trap "" HUP; setsid bash "$0" --after $$ "$@" </dev/null &)
    echo "(this process ends here; its orphaned grandchild goes on in a session of its own)"
}

# Waits until a process has gone.
after() {
    for _ in {1..300}; do
        [ -e "/proc/$1/exe" ] || break
        sleep 0.02
    done
}

case $1 in
--until-refused) until_refused && exit ;;
--orphan) shift && orphan "$@" && exit ;;
--after) after "$2" && shift 2 ;;
esac
for goal; do
    attempt "$goal"
done
