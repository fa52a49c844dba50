#!/usr/bin/env perl
# The whole way, client to model and back, through NGINX and the engine: the
# demo model, and OpenSeek-Small's shape with random weights.
#
#   streams_N     tokens a second of N streams together, 16 tokens in, TOKENS
#                 (64; the demo, whose 64 take 30 ms, 1,024) out
#   ttft_2k...    first token behind 2,048 tokens that are new, or were read
#   gap_4k...     longest wait of a running stream while 4,000 tokens arrive,
#                 the median and the longest of ROUNDS (5), and what it may be:
#                 two decode steps and one chunk of a prompt
#   flood...      ten times as many requests as can be answered: what comes out,
#                 beside what does where nobody is refused, how long a refusal
#                 takes, and who has the cores meanwhile: this client, too
#   peer...       streams_N beside llama.cpp's llama-server: the same weights,
#                 threads, streams and load client; both servers run, and take
#                 turns; the median of ROUNDS (5), and the ratio of these.
#                 PEER is a llama-bench, as for peer.pl, with llama-server
#                 beside it.  How that is run is said.
#
# SHAPE=NAME runs one model alone, and v2_lite_9 only so; ONLY=streams, prefix,
# gap, flood or peer a part of that, COUNTS="1 16" these numbers of streams,
# TOKENS so many of each, QUANT=int8 or int4 with fewer bits a weight (the peer:
# Q8_0, Q4_K); LONG=1 floods for two minutes, not for ten seconds; KEEP=1: who
# was refused leaves his connection to the next.  IDLE=1: the engine has a core
# when nobody else wants it (SCHED_IDLE).
use strict;
use warnings;
use File::Basename;
use HTTP::Tiny;
use JSON::PP;
use List::Util qw(max sum);
use POSIX ();
use Test::More ();
use Moe;
use Moe::Peer;

my $chunk_ms = 100;             # the default of --step-ms
my $flood_s = $ENV{LONG} ? 120 : 10;
my $n_new = 0;
my $quant = $ENV{QUANT} || 'bf16';
my %peer_type = (bf16 => 'bf16', int8 => 'q8_0', int4 => 'q4_k');

my $like = '"stream":true,"stream_options":{"include_usage":true},'
         . '"temperature":0,"ignore_eos":true';

my %shapes = (
    demo => sub { Moe::model() },
    openseek_small => sub { random_model('openseek-small', 8192, @_) },
    v2_lite_9 => sub { random_model('v2-lite-9', 8192, @_) },
);

die "QUANT: expected bf16, int8 or int4, got $quant\n" if !$peer_type{$quant};
for my $shape ($ENV{SHAPE} || qw(demo openseek_small)) {
    die "SHAPE: expected ", join(', ', sort keys %shapes), ", got $shape\n"
        if !$shapes{$shape};
    my $moe = Moe->new;
    my @random = $shape eq 'demo' ? () : ('--random-weights', 1);
    $moe->engine(model => $shapes{$shape}->($moe),
                 args => [@random, '--quant', $quant, '--max-queue', 64]);
    $moe->nginx(engine => 'streams 4096;');
    $moe->wait_ready;
    if ($ENV{IDLE}) {
        system(qw(chrt -a -i -p 0), $_) == 0 or die "chrt: $?\n"
            for $moe->engine_pids;
    }

    for my $part ([streams => \&streams], [prefix => \&prefix], [gap => \&gap],
                  [flood => \&flood], [peer => \&peer]) {
        my ($name, $sub) = @$part;
        $sub->($shape, $moe) if ($ENV{ONLY} // $name) eq $name;
    }
    $moe->stop;
}
Test::More::done_testing();

sub bench {
    my ($shape, $name, $value, $unit) = @_;
    printf "bench serve.%s.%s %.6g %s\n", $shape, $name, $value, $unit;
}

# config.json of a real model with room for long prompts, and a tokenizer.
sub random_model {
    my ($name, $n_ctx, $moe) = @_;
    my $dir = "$moe->{dir}/$name";
    my $config = Moe::slurp("$Moe::root/t/data/configs/$name/config.json");
    $config =~ s/("max_position_embeddings"\s*:\s*)\d+/$1$n_ctx/
        or die "$name: no max_position_embeddings\n";
    mkdir $dir;
    $moe->write("$name/config.json", $config);
    symlink Moe::model() . "/$_", "$dir/$_"
        for qw(tokenizer.json tokenizer_config.json);
    return $dir;
}

sub body {
    my ($n_tok, @ids) = @_;
    return "{$like,\"max_tokens\":$n_tok,\"prompt\":["
         . join(',', map { /^\d+$/ ? $_ : "{{$_}}" } @ids) . ']}';
}

# An id to begin a prompt with, so that nobody has the rest in a cache.
sub new_id { return 300 + $n_new++ % 200 }

# A load client; returns what it reads from.
sub start {
    my ($port, @args) = @_;
    my @options = ('--json', $ENV{KEEP} ? '--keep' : ());
    push @options, splice @args, 0, 2 while $args[0] =~ /^--/;
    open my $pipe, '-|', "$Moe::build/t/tools/load", @options, $port,
        '/v1/completions', @args or die "load: $!\n";
    return $pipe;
}

sub result {
    my ($pipe) = @_;
    my $out = decode_json(join '', <$pipe>);
    close $pipe or die 'load failed: ', encode_json($out), "\n";
    return $out;
}

sub load { return result(start(@_)) }

sub counts { return split ' ', $ENV{COUNTS} // "@_" }

# N streams at once; what the client says of them.
sub together {
    my ($shape, $port, $n) = @_;
    my $tokens = $ENV{TOKENS} || ($shape eq 'demo' ? 1024 : 64);
    return load($port, $n, $n, body($tokens, new_id(), 'ids 15'));
}

# Pages of weights are there.
sub warm { load($_[0], 1, 1, body(8, 'ids 16')) }

sub streams {
    my ($shape, $moe) = @_;
    warm($moe->port);
    for my $n (counts(1, 4, 16, 64)) {
        my $r = together($shape, $moe->port, $n);
        bench($shape, "streams_$n", $r->{goodput}, 'tok/s');
        bench($shape, "streams_$n.gap_p99", $r->{gap_us}{p99} / 1000, 'ms');
    }
}

# llama-server with the weights of this shape, when it answers.
sub start_peer {
    my ($shape, $moe) = @_;
    chomp(my $threads = $ENV{THREADS} || `nproc`);
    my $file = Moe::Peer::gguf($shape =~ tr/_/-/r, $peer_type{$quant});
    my @cmd = (dirname($ENV{PEER}) . '/llama-server', '-m', $file,
               '-t', $threads, '-tb', $threads, qw(-np 16 -c 8192 --no-webui
               --host 127.0.0.1 --port), $moe->port('peer'));
    print "# peer: @cmd\n";
    my $pid = $moe->spawn('peer.log', @cmd);
    my $health = 'http://127.0.0.1:' . $moe->port('peer') . '/health';
    $moe->until('llama-server', sub {
        die "llama-server ended:\n", Moe::slurp("$moe->{dir}/peer.log")
            if defined $moe->ended($pid);
        return HTTP::Tiny->new->get($health)->{success};
    }, 120);
    return $pid;
}

sub peer {
    my ($shape, $moe) = @_;
    return if $shape eq 'demo';
    if (!$ENV{PEER} || !-x dirname($ENV{PEER}) . '/llama-server') {
        print "# SKIP: PEER=path/to/llama-bench, with llama-server beside it, "
            . "compares streams with llama.cpp\n";
        return;
    }
    my $pid = start_peer($shape, $moe);
    my @servers = ([ours => $moe->port], [peer => $moe->port('peer')]);
    my (%got, %median);
    warm($_->[1]) for @servers;
    for (1 .. Moe::Peer::rounds()) {
        for my $n (counts(1, 4, 16)) {
            push @{ $got{$n}{ $_->[0] } },
                together($shape, $_->[1], $n)->{goodput} for @servers;
        }
    }
    kill 'TERM', $pid;
    $moe->await_exit('llama-server', $pid);
    for my $n (counts(1, 4, 16)) {
        $median{$_} = Moe::Peer::median(@{ $got{$n}{$_} }) for qw(ours peer);
        bench($shape, "peer.streams_$n", $median{ours}, 'tok/s');
        bench($shape, "peer.streams_$n.peer", $median{peer}, 'tok/s');
        bench($shape, "peer.streams_$n.ratio", $median{ours} / $median{peer},
              'of_peer');
    }
}

sub prefix {
    my ($shape, $moe) = @_;
    my $body = body(1, 'shared 2048', 'ids 16');
    my $cold = load($moe->port, 1, 1, $body)->{first_us}{p50};
    my $warm = load($moe->port, 1, 9, $body)->{first_us}{p50};
    bench($shape, 'ttft_2k', $cold / 1000, 'ms');
    bench($shape, 'ttft_2k_cached', $warm / 1000, 'ms');
    bench($shape, 'ttft_2k.ratio', $cold / $warm, 'times');
}

# One stream runs, and half a second later the long prompt comes.  A token that
# ends within a character makes no event of its own, but with logprobs.
sub longest {
    my ($shape, $moe) = @_;
    my $n_tok = $shape eq 'demo' ? 6000 : 300;
    my $prompt = $shape eq 'demo' ? 1800 : 4000;
    my $body = body($n_tok, 'ids 16') =~ s/^\{/{"logprobs":0,/r;
    my $running = start($moe->port, 1, 1, $body);
    select undef, undef, undef, 0.5;
    load($moe->port, 1, 1, body(1, new_id(), "ids $prompt"));
    return result($running)->{gap_us}{max} / 1000;
}

sub gap {
    my ($shape, $moe) = @_;
    my $alone = load($moe->port, 1, 1, body(64, 'ids 16'))->{gap_us};
    my @gaps = map { longest($shape, $moe) } 1 .. Moe::Peer::rounds();
    bench($shape, 'gap_4k', Moe::Peer::median(@gaps), 'ms');
    bench($shape, 'gap_4k.max', max(@gaps), 'ms');
    bench($shape, 'gap_4k.bound', 2 * $alone->{p50} / 1000 + $chunk_ms, 'ms');
}

sub flood {
    my ($shape, $moe) = @_;
    my $n_tok = 32;
    my $body = body($n_tok, 'ids 16');
    my $most = load($moe->port, '--seconds', $flood_s < 20 ? $flood_s : 20, 64,
                    1e6, $body);
    my $rss = rss($moe);
    my $rate = 10 * $most->{goodput} / $n_tok;
    my @cpu = (cpu($moe->engine_pids), cpu($moe->workers));
    my $flood = load($moe->port, '--seconds', $flood_s, '--rate', $rate, 4000,
                     1e8, $body);
    my %cpu = (engine => cpu($moe->engine_pids) - $cpu[0],
               worker => cpu($moe->workers) - $cpu[1], client => $flood->{cpu});
    bench($shape, 'flood.capacity', $most->{goodput}, 'tok/s');
    bench($shape, 'flood.offered', $rate * $n_tok, 'tok/s');
    bench($shape, 'flood.goodput', $flood->{goodput}, 'tok/s');
    bench($shape, 'flood.goodput.share', $flood->{goodput} / $most->{goodput},
          'of_capacity');
    bench($shape, "flood.$_", $flood->{$_}, 'requests')
        for qw(ok refused failed dropped);
    bench($shape, "flood.refusal_$_", $flood->{refused_us}{$_} / 1000, 'ms')
        for qw(p50 p99 max);
    bench($shape, "flood.cpu.$_", $cpu{$_} / $flood->{seconds}, 'cores')
        for sort keys %cpu;
    bench($shape, 'flood.memory', rss($moe) - $rss, 'KiB_more');
}

# Seconds that these processes have run so far, in the kernel or not.
sub cpu {
    my $tick = POSIX::sysconf(POSIX::_SC_CLK_TCK());
    my @stats = map { Moe::slurp("/proc/$_/stat") =~ s/.*\)//r } @_;
    return sum(map { my @f = split; ($f[11] + $f[12]) / $tick } @stats);
}

# Of the engine and of NGINX's workers.
sub rss {
    my ($moe) = @_;
    return sum(map { Moe::slurp("/proc/$_/status") =~ /^VmRSS:\s+(\d+)/m
                     ? $1 : 0 } $moe->engine_pids, $moe->workers);
}
