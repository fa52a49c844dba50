#!/usr/bin/env perl
# What a token costs on its way from where it came to be to its client, one
# worker of NGINX:
#
#   ours      the module, before mock_engine: the real rings, no model
#   proxy_c   proxy_pass without buffering, before a minimal server in C
#   proxy_py  the same, before a bare ASGI application on uvicorn and uvloop
#
#     perl -It/lib t/bench/gateway.pl [SETTING...]
#
# The events' bytes are the same, so are client, clocks and pacing; the three
# take turns, ROUNDS times (3), SECONDS each (3), and the median is told.  CPU is
# that of all between the token and the client's socket: the engine's part in
# writing its ring and waking the worker counts with ours, as that of the server
# counts with its proxy.  SERVERS='ours proxy_c' leaves one out.  With `steps`
# all streams get their tokens at once, as a batch of one engine does; with
# `spread` each has a clock of its own.
#
# The client would be on another machine: it looks at its sockets once in
# CLIENT_US (1000), since being woken by each event would be paid by the worker,
# and would have it wait where they share a core.  CLIENT_US=0: it is woken, as
# in a flood, where it has no time to sleep.
# AWAKE=1 keeps the cores awake, as an engine that computes does, by a loop on
# each that gives way to all else: what is left out is a halted core's start,
# which in a virtual machine costs more than a token.
#
# Prints a table, and writes it to $BUILD/bench-gateway.json.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename;
use IPC::Open2;
use JSON::PP;
use POSIX qw(strftime);
use Test::More ();
use Time::HiRes qw(sleep);
use Moe;

my $dir = dirname(abs_path(__FILE__));
my $build = $Moe::build;
my $rounds = $ENV{ROUNDS} // 3;
my $seconds = $ENV{SECONDS} // 3;
my $client_us = $ENV{CLIENT_US} // 1000;
my $awake = $ENV{AWAKE} // 0;
my $perf = Moe::find('perf');
chomp(my $nofile = `bash -c 'ulimit -n'`);

# name, streams, script; what of it: cpu, calls, idle.  Each has servers of its
# own, as a worker keeps what it has freed.
my @settings = (
    [ 'idle_1024',      1024,  'delay_ms=1000000000',        'idle' ],
    [ 'idle_10000',     10000, 'delay_ms=1000000000',        'idle' ],
    [ 'steps_1x50',     1,     'delay_ms=20 step_ms=20',     'cpu', 'calls' ],
    [ 'steps_64x50',    64,    'delay_ms=20 step_ms=20',     'cpu', 'calls' ],
    [ 'spread_64x20',   64,    'delay_ms=50 spread=1',       'cpu', 'calls' ],
    [ 'spread_64x50',   64,    'delay_ms=20 spread=1',       'cpu', 'calls' ],
    [ 'steps_1024x10',  1024,  'delay_ms=100 step_ms=100',   'cpu', 'calls' ],
    [ 'spread_1024x10', 1024,  'delay_ms=100 spread=1',      'cpu' ],
    [ 'spread_10000x1', 10000, 'delay_ms=1000 spread=1',     'cpu' ],
    [ 'flood_1',        1,     'delay_ms=0',                 'cpu' ],
    [ 'flood_64',       64,    'delay_ms=0',                 'cpu' ],
    [ 'flood_1024',     1024,  'delay_ms=0',                 'cpu' ],
);
my %wanted = map { $_ => 1 } @ARGV;
@settings = grep { !%wanted || $wanted{ $_->[0] } } @settings;
die "no such setting\n" unless @settings;

my $uvicorn = "$build/gateway-venv/bin/uvicorn";
my @order = split ' ', $ENV{SERVERS} // 'ours proxy_c proxy_py';
unless (-x $uvicorn) {
    print STDERR "no uvicorn in $build/gateway-venv: without it\n";
    @order = grep { $_ ne 'proxy_py' } @order;
}

my (@rows, %server, $head, $tail);
my @loops = map { loop() } 1 .. ($awake ? n_cpus() : 0);
for my $setting (@settings) {
    my ($name, $n, $script, @what) = @$setting;
    my %samples;
    begin_servers();
    for my $what (@what) {
        for (1 .. ($what eq 'cpu' ? $rounds : 1)) {
            for my $s (@server{@order}) {
                my $r = $what eq 'idle'  ? idle($s, $n, $script)
                      : $what eq 'calls' ? calls($s, $n, $script)
                                         : cpu($s, $n, $script);
                push @{ $samples{ $s->{name} }{$_} }, $r->{$_} for keys %$r;
            }
        }
    }
    for my $s (@order) {
        my %row = map { $_ => median(@{ $samples{$s}{$_} }) }
                  keys %{ $samples{$s} };
        $row{late_p99} = $row{gap_p99} - $1 * 1000
            if $row{gap_p99} && $script =~ /delay_ms=([1-9]\d*)/;
        push @rows, { setting => $name, server => $s, %row };
    }
    # What NGINX has to say is told, and nothing else of a test.
    Test::More->builder->output(\my $quiet);
    $_->{moe}->stop for values %server;
}
kill 'KILL', @loops;
report();
Test::More::done_testing();


sub n_cpus {
    return scalar(() = Moe::slurp('/proc/cpuinfo') =~ /^processor\s*:/mg);
}

sub loop {
    my $parent = $$;
    my $pid = fork // die "fork: $!\n";
    return $pid if $pid;
    system('chrt', '--idle', '--pid', 0, $$) == 0 or die "no chrt\n";
    1 while getppid == $parent;
    POSIX::_exit(0);
}


# -- servers -----------------------------------------------------------------

sub begin_servers {
    %server = (ours => ours());
    ($head, $tail) = event() unless $head;
    for (grep { $_ ne 'ours' } @order) {
        $server{$_} = proxy($_, $_ eq 'proxy_c'
            ? (c  => "$build/t/bench/gateway/sse_server") : (py => $uvicorn));
    }
}

sub ours {
    my $moe = Moe->new;
    my $mock = $moe->mock('--quiet');
    $moe->nginx(conf => conf('moe_pass main;', 'moe_engine main {
        socket %%SOCKET%%; streams 10240; }'));
    $moe->wait_ready;
    return { name => 'ours', moe => $moe, pids => [$moe->workers, $mock] };
}

sub proxy {
    my ($name, $port, $program) = @_;
    my $moe = Moe->new;
    my $n = $moe->port($port);
    local @ENV{qw(HEAD TAIL)} = ($head, $tail);
    my $pid = $moe->spawn("$name.out", $program, $port eq 'c'
        ? ($n, $head, $tail)
        : ('--port', $n, '--loop', 'uvloop', '--http', 'httptools',
           '--log-level', 'warning', '--no-access-log', '--backlog', 4096,
           '--app-dir', "$dir/gateway", 'asgi:app'));
    $moe->until("port of $name", sub {
        IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $n)
    });
    $moe->nginx(conf => conf("proxy_pass http://127.0.0.1:$n;
        proxy_http_version 1.1; proxy_set_header Connection '';
        proxy_buffering off; proxy_read_timeout 1h;", ''));
    my ($worker) = $moe->until("worker of $name", sub { ($moe->workers)[0] });
    return { name => $name, moe => $moe, pids => [$worker, $pid] };
}

sub conf {
    my ($location, $http) = @_;
    return <<"CONF";
%%GLOBALS%%
worker_processes 1;
events { worker_connections $nofile; }
http {
    %%HTTP%%
    access_log off;
    $http
    server {
        listen 127.0.0.1:%%PORT%% backlog=4096;
        location /v1/ { $location }
        @{[ $http && 'location = /health { moe_health main; }' ]}
    }
}
CONF
}

# What stands before and behind the stamp in an event of ours: the second one,
# the first tells the role.
sub event {
    my $s = $server{ours}{moe}->stream('/v1/chat/completions',
        JSON::PP::decode_json(body('tokens=3')));
    my @data = map { $s->event->{data} } 1 .. 3;
    $s->close;
    $data[1] =~ /^(.*")t\d{16} (".*)$/ or die "not an event: $data[1]\n";
    return ("data: $1", "$2\n\n");
}

sub body {
    return qq({"stream":true,"messages":[{"role":"user",)
           . qq("content":"mock stamp $_[0]"}]});
}


# -- measurements ------------------------------------------------------------

# Opens the streams; returns the client's ends and pid.
sub begin {
    my ($s, $n, $script) = @_;
    # A proxy has two descriptors a stream, and NGINX keeps a sixteenth of its
    # connections free.
    my $most = int($nofile * ($s->{name} eq 'ours' ? .9 : .45));
    $n = $most if $n > $most;
    my $sleep_us = $script =~ /\bdelay_ms=0\b/ ? 0 : $client_us;
    my $pid = open2(my $out, my $in, "$build/t/bench/gateway/client",
                    $s->{moe}->port, '/v1/chat/completions', $n, $seconds,
                    $sleep_us, body("tokens=100000000 $script"),
                    @{ $s->{pids} });
    if (($_ = <$out> // '') ne "open\n") {
        die "ours: the client did not begin\n" if $s->{name} eq 'ours';
        waitpid $pid, 0;
        return;                         # a peer that cannot: no figure
    }
    sleep 0.5;
    return ($in, $out, $pid, $n);
}

sub look {
    my ($in, $out) = @_;
    print $in "go\n";
    $in->flush;
    return JSON::PP::decode_json(scalar <$out>);
}

# All have been served, none was cut.
sub end {
    my ($s, $n, $in, $out, $pid, $r) = @_;
    close $in;
    waitpid $pid, 0;
    $s->{moe}->{exits}{$pid} = $?;
    die "$s->{name}, $n streams: some ended early\n"
        if $? || ($r && ($r->{ended} || !$r->{least}));
    $s->{moe}->until('end of all streams', sub {
        $s->{name} ne 'ours' || !Moe::busy($s->{moe}) });
    sleep 0.3;
}

sub cpu {
    my ($s, $n, $script) = @_;
    my ($in, $out, $pid, $streams) = begin($s, $n, $script) or return {};
    my $r = look($in, $out);
    end($s, $streams, $in, $out, $pid, $r);
    my ($nginx, $server) = map { $_ / $r->{events} } @{ $r->{cpu_us} };
    return { streams => $streams, nginx_us => $nginx,
             total_us => $nginx + $server,
             tokens_s => $r->{events} / $r->{seconds},
             map { $_ => $r->{$_} } qw(socket_p50 socket_p99 gap_p50 gap_p99),
                                    $client_us ? () : qw(read_p50 read_p99) };
}

# System calls of the worker, by a tracepoint: a tracer that stops it at each
# would make its wake-ups fewer.
sub calls {
    my ($s, $n, $script) = @_;
    return {} unless $perf;
    my ($in, $out, $pid, $streams) = begin($s, $n, $script) or return {};
    my $counter = $s->{moe}->spawn('perf.out', $perf, 'stat', '-x', ',',
        '-e', 'raw_syscalls:sys_enter', '-p', $s->{pids}[0],
        '--', 'sleep', $seconds);
    my $r = look($in, $out);
    $s->{moe}->await_exit('perf', $counter);
    end($s, $streams, $in, $out, $pid, $r);
    my ($calls) = Moe::slurp("$s->{moe}{dir}/perf.out") =~ /^(\d+),[^\n]*\s*\z/m
        or return {};
    return { calls => $calls / $seconds / ($r->{events} / $r->{seconds}) };
}

# Memory of the worker for a stream that is open and silent.
sub idle {
    my ($s, $n, $script) = @_;
    my $worker = $s->{pids}[0];
    my $before = $s->{moe}->rss($worker);
    my ($in, $out, $pid, $streams) = begin($s, $n, $script) or return {};
    my $rss = $s->{moe}->rss($worker) - $before;
    end($s, $streams, $in, $out, $pid);
    return { streams => $streams, idle_kib => $rss / $streams / 1024 };
}

sub median {
    my @v = sort { $a <=> $b } @_;
    return $v[$#v / 2];
}


# -- report ------------------------------------------------------------------

sub report {
    chomp(my $commit = `git -C $dir rev-parse --short HEAD 2>/dev/null`
                       || 'none');
    my ($cpu) = Moe::slurp('/proc/cpuinfo') =~ /^model name\s*:\s*(.+)$/m;
    my $machine = ($cpu // 'unknown CPU') . ', ' . n_cpus() . ' CPUs';
    my $date = strftime '%Y-%m-%d', gmtime;

    open my $json, '>', "$build/bench-gateway.json"
        or die "$build/bench-gateway.json: $!\n";
    print $json JSON::PP->new->pretty->canonical->encode(
        { date => $date, machine => $machine, commit => $commit,
          rounds => $rounds, seconds => $seconds, results => \@rows });
    close $json or die "$build/bench-gateway.json: $!\n";

    my @columns = (
        [ streams => '%8d' ], [ tokens_s => '%9.0f' ], [ nginx_us => '%9.2f' ],
        [ total_us => '%9.2f' ], [ calls => '%7.3f' ],
        [ socket_p50 => '%11d' ], [ socket_p99 => '%11d' ],
        [ read_p50 => '%9d' ], [ read_p99 => '%9d' ], [ late_p99 => '%9d' ],
        [ idle_kib => '%9.1f' ]);
    @columns = grep { my $c = $_->[0]; grep { defined $_->{$c} } @rows }
               @columns;
    print "$machine, commit $commit, $date; $rounds rounds of $seconds s, "
        . "client_us $client_us, cores "
        . ($awake ? "kept awake\n" : "left alone\n");
    printf "%-15s %-8s", 'setting', 'server';
    printf ' %*s', $_->[1] =~ /(\d+)/, $_->[0] for @columns;
    print "\n";
    for my $row (@rows) {
        printf "%-15s %-8s", @$row{qw(setting server)};
        for my $c (@columns) {
            my ($width) = $c->[1] =~ /(\d+)/;
            my $v = $row->{ $c->[0] };
            printf ' %*s', $width, defined $v ? sprintf($c->[1], $v) : '-';
        }
        print "\n";
    }
}
