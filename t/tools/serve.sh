#!/usr/bin/env bash
# serve.sh run|start BUILD PORT MODEL [ENGINE_ARGS...]
# serve.sh stop BUILD
#
# Starts an engine with MODEL and an NGINX with the chat page on
# 127.0.0.1:PORT, in the foreground (run: Ctrl-C ends both) or in the
# background (start: returns when /health answers 200; stop ends both).
# Everything that it writes is in BUILD/run: pid files, logs, the NGINX
# configuration made from conf/demo/nginx.conf, and the engine's socket.
#
# START_SECONDS (300) is how long an engine may take to load its model.
set -euo pipefail

usage() {
    sed -n 's/^# \(serve.sh\)/\1/p' "$0" >&2
    exit 2
}

die() {
    echo "serve.sh: $*" >&2
    exit 1
}

[ $# -ge 2 ] || usage
command=$1
[ -d "$2" ] || [ "$command" != stop ] || exit 0     # nothing was ever built
build=$(cd "$2" 2> /dev/null && pwd) || die "no such directory: $2"
root=$(cd "$(dirname "$0")/../.." && pwd)
run=$build/run
wait_s=${START_SECONDS:-300}

# The path of a unix socket has 107 bytes at most.
socket=$run/engine.sock
[ ${#socket} -lt 108 ] ||
    socket=/tmp/moe-$(id -u)-$(printf %s "$run" | cksum | cut -d' ' -f1).sock


# pid_of NAME: the pid in run/NAME.pid, if that process lives and is ours: a pid
# file may be older than the machine's last start.
pid_of() {
    local pid
    read -r pid 2> /dev/null < "$run/$1.pid" || return 1
    case $pid in ''|*[!0-9]*) return 1 ;; esac
    tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" |
        grep -qF -e "$run" -e "$socket" || return 1
    echo "$pid"
}

# end NAME SIGNAL: ends a process and waits for its end; KILL after 10 s.
end() {
    local pid i
    pid=$(pid_of "$1") || { rm -f "$run/$1.pid"; return 0; }
    kill "-$2" "$pid" 2> /dev/null || true
    for ((i = 0; i < 100; i++)); do
        [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" \
            2> /dev/null || break
        sleep 0.1
    done
    if [ "$i" = 100 ]; then
        echo "serve.sh: $1 ($pid) does not end: killed" >&2
        kill -KILL "$pid" 2> /dev/null || true
    fi
    rm -f "$run/$1.pid"
}

stop() {
    end nginx TERM
    end engine TERM
    rm -f "$socket"
}

# The status code of GET /health, or nothing.
health() {
    local code=
    { exec 3<> "/dev/tcp/127.0.0.1/$port"; } 2> /dev/null || return 0
    printf 'GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3 || true
    read -r -t 5 _ code _ <&3 || true
    exec 3>&-
    echo "$code"
}

# fail WHY: says so with the ends of the logs, and leaves nothing running.
fail() {
    echo "serve.sh: $*" >&2
    for log in engine.log nginx.log error.log; do
        [ ! -s "$run/$log" ] || { echo "-- $run/$log"; tail -n 15 "$run/$log"; } >&2
    done
    stop
    exit 1
}


check() {
    nginx=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v nginx) ||
        die "there is no nginx: apt-get install nginx"
    [ -x "$build/moe-engine" ] ||
        die "$build/moe-engine is not built: make engine"
    [ -f "$build/ngx_http_moe_module.so" ] ||
        die "$build/ngx_http_moe_module.so is not built: make module"
    [ -f "$model/config.json" ] ||
        die "$model is not a model directory: it has no config.json"
    case $port in ''|*[!0-9]*) die "not a port: $port" ;; esac
    case $build$root in *[\"\'\;{}\$\&\|\\\ ]*)
        die "a path with blanks or signs cannot stand in nginx.conf: $build" ;;
    esac
}

configure() {
    mkdir -p "$run/tmp"
    rm -f "$run"/*.log "$socket"
    sed -e "s|@BUILD@|$build|; s|@RUN@|$run|; s|@SOCKET@|$socket|" \
        -e "s|@PORT@|$port|; s|@WWW@|$root/conf/demo/www|" \
        "$root/conf/demo/nginx.conf" > "$run/nginx.conf"
    # Workers of a root's nginx would be nobody, who may not read these paths.
    [ "$(id -u)" != 0 ] || sed -i '1i user root;' "$run/nginx.conf"
}

# In a session of its own, so that Ctrl-C comes to this script alone.
start_engine() {
    # run shows the engine's own progress bar and lines.
    [ "$command" = run ] && exec 4>&2 || exec 4>> "$run/engine.log"
    setsid "$build/moe-engine" --model "$model" --socket "$socket" "$@" \
        < /dev/null >&4 2>&4 4>&- &
    engine=$!
    echo "$engine" > "$run/engine.pid"
    exec 4>&-
}

start_nginx() {
    "$nginx" -p "$run" -c "$run/nginx.conf" -e "$run/error.log" \
        > "$run/nginx.log" 2>&1 || fail "nginx does not start"
}

await_health() {
    local code i
    for ((i = 0; i < wait_s * 10; i++)); do
        code=$(health)
        [ "$code" != 200 ] || return 0
        kill -0 "$engine" 2> /dev/null || fail "the engine has ended"
        sleep 0.1
    done
    fail "/health does not answer 200 within $wait_s s"
}

announce() {
    echo
    echo "chat page   http://127.0.0.1:$port/"
    echo "API         curl -N http://127.0.0.1:$port/v1/chat/completions" \
         "-d '{\"messages\":[{\"role\":\"user\",\"content\":" \
         "\"What is 347 + 285?\"}],\"stream\":true}'"
    echo "logs        $run"
}

begin() {
    port=$1 model=$2
    shift 2
    check
    if pid_of engine > /dev/null && pid_of nginx > /dev/null; then
        echo "already running (pids $(pid_of engine) $(pid_of nginx)):" \
             "make stop ends it"
        [ "$command" = start ] && exit 0 || exit 1
    fi
    stop
    configure
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    start_engine "$@"
    start_nginx
    await_health
    announce
}


case $command in
    run)
        [ $# -ge 4 ] || usage
        begin "${@:3}"
        echo "Ctrl-C stops both"
        wait "$engine" || true
        echo "serve.sh: the engine has ended" >&2
        exit 1
        ;;
    start)
        [ $# -ge 4 ] || usage
        begin "${@:3}"
        trap - EXIT
        ;;
    stop)
        stop
        ;;
    *)
        usage
        ;;
esac
