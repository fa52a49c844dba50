#!/usr/bin/env perl
# The whole way, client to model and back, through NGINX and the engine: the
# demo model, and OpenSeek-Small's shape with random weights.
#
#   streams_N     tokens a second of N streams together, 16 tokens in, TOKENS
#                 (64; the demo, whose 64 take 30 ms, 1,024) out
#   ttft_2k...    first token behind 2,048 tokens that are new, or were read
#   gap_4k...     longest wait of a running stream while 4,000 tokens arrive,
#                 and what it may be: two decode steps and one chunk of a prompt
#   flood...      ten times as many requests as can be answered: what comes out,
#                 beside what does where nobody is refused, and how long a
#                 refusal takes
#
# SHAPE=NAME runs one model alone, ONLY=streams, prefix, gap or flood a part of
# that; LONG=1 floods for two minutes, not for ten seconds.  PEER=PORT measures
# streams_N of another server instead, with its own /v1/completions.
use strict;
use warnings;
use File::Basename;
use JSON::PP;
use List::Util qw(sum);
use Test::More ();
use Moe;

my $chunk_ms = 100;             # the default of --step-ms
my $flood_s = $ENV{LONG} ? 120 : 10;

my $like = '"stream":true,"stream_options":{"include_usage":true},'
         . '"temperature":0,"ignore_eos":true';

if ($ENV{PEER}) {
    streams('peer', $ENV{PEER}, 1, 4, 16);
    exit 0;
}

my %shapes = (
    demo => sub { Moe::model() },
    openseek_small => sub { random_model('openseek-small', 8192, @_) },
);

for my $shape (sort keys %shapes) {
    next if $ENV{SHAPE} && $ENV{SHAPE} ne $shape;
    my $moe = Moe->new;
    my @random = $shape eq 'demo' ? () : ('--random-weights', 1);
    $moe->engine(model => $shapes{$shape}->($moe),
                 args => [@random, '--max-queue', 64]);
    $moe->nginx(engine => 'streams 4096;');
    $moe->wait_ready;

    for my $part ([streams => sub { streams($_[0], $moe->port, 1, 4, 16, 64) }],
                  [prefix => \&prefix], [gap => \&gap], [flood => \&flood]) {
        my ($name, $sub) = @$part;
        $sub->($shape, $moe) if ($ENV{ONLY} // $name) eq $name;
    }
    $moe->done;
}

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
         . join(',', map { "{{$_}}" } @ids) . ']}';
}

# A load client; returns what it reads from.
sub start {
    my ($port, @args) = @_;
    my @options = ('--json');
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

sub streams {
    my ($shape, $port, @counts) = @_;
    my $tokens = $ENV{TOKENS} || ($shape eq 'demo' ? 1024 : 64);
    load($port, 1, 1, body(8, 'ids 16'));       # pages of weights are there
    for my $n (@counts) {
        my $r = load($port, $n, $n, body($tokens, 'ids 16'));
        bench($shape, "streams_$n", $r->{goodput}, 'tok/s');
        bench($shape, "streams_$n.gap_p99", $r->{gap_us}{p99} / 1000, 'ms');
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

# One stream runs, and half a second later the long prompt comes.
sub gap {
    my ($shape, $moe) = @_;
    my $n_tok = $shape eq 'demo' ? 6000 : 300;
    my $prompt = $shape eq 'demo' ? 1800 : 4000;
    my $alone = load($moe->port, 1, 1, body(64, 'ids 16'))->{gap_us};
    my $running = start($moe->port, 1, 1, body($n_tok, 'ids 16'));
    select undef, undef, undef, 0.5;
    load($moe->port, 1, 1, body(1, "ids $prompt"));
    my $gap = result($running)->{gap_us};
    bench($shape, 'gap_4k', $gap->{max} / 1000, 'ms');
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
    my $flood = load($moe->port, '--seconds', $flood_s, '--rate', $rate, 4000,
                     1e8, $body);
    bench($shape, 'flood.capacity', $most->{goodput}, 'tok/s');
    bench($shape, 'flood.offered', $rate * $n_tok, 'tok/s');
    bench($shape, 'flood.goodput', $flood->{goodput}, 'tok/s');
    bench($shape, 'flood.goodput.share', $flood->{goodput} / $most->{goodput},
          'of_capacity');
    bench($shape, "flood.$_", $flood->{$_}, 'requests')
        for qw(ok refused failed dropped);
    bench($shape, "flood.refusal_$_", $flood->{refused_us}{$_} / 1000, 'ms')
        for qw(p50 p99 max);
    bench($shape, 'flood.memory', rss($moe) - $rss, 'KiB_more');
}

# Of the engine and of NGINX's workers.
sub rss {
    my ($moe) = @_;
    return sum(map { Moe::slurp("/proc/$_/status") =~ /^VmRSS:\s+(\d+)/m
                     ? $1 : 0 } $moe->engine_pids, $moe->workers);
}
