#!/usr/bin/env perl
# The model's speed beside another engine's: PEER is llama.cpp's llama-bench.
# Both have the same random weights (t/lib/Moe/Peer.pm), the same number of
# threads, and run in turn.  A figure is the median of ROUNDS (5); the ratio that
# of the medians.
#
# SHAPE, QUANT and MEASURE, words apart, say which to run: all of it takes an
# hour.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename;
use IPC::Open2;
use JSON::PP;
use Moe::Peer;

my $top = abs_path(dirname(abs_path(__FILE__)) . '/../..');
my $build = abs_path($ENV{BUILD} // die "BUILD is not set: call `make bench`\n");
my $peer = $ENV{PEER};
chomp(my $threads = $ENV{THREADS} || `nproc`);

if (!$peer) {
    print "# SKIP: PEER=path/to/llama-bench compares with llama.cpp\n";
    exit 0;
}

# What bench/model calls it => what the peer does for it.
my @measures = (
    [prefill_512 => '-p 512 -n 0'],
    [prefill_2048 => '-p 2048 -n 0'],
    [decode_1 => '-p 0 -n 64 -d 256'],
    [decode_1_at_4k => '-p 0 -n 32 -d 3840'],
);
my @shapes = ([openseek_small => 'openseek-small'],
              [v2_lite_9 => 'v2-lite-9']);
my @quants = ([bf16 => 'bf16'], [int8 => 'q8_0'], [int4 => 'q4_k']);

for my $shape (asked(SHAPE => @shapes)) {
    for my $quant (asked(QUANT => @quants)) {
        compare(@$shape, @$quant);
    }
}

# Those of the list that the environment names, or all.
sub asked {
    my ($name, @list) = @_;
    my %only = map { $_ => 1 } split ' ', $ENV{$name} // '';
    return grep { !%only || $only{ $_->[0] } } @list;
}

sub peer_speed {
    my ($file, $args) = @_;
    my $out = `'$peer' -m '$file' -t $threads -r 1 -fa auto -o jsonl $args`;
    my $v = eval { decode_json($out)->{avg_ts} };
    die "$peer: expected a line of JSON with avg_ts, got: $out\n" unless $v;
    return $v;
}

sub compare {
    my ($shape, $dir, $quant, $type) = @_;
    my @run = asked(MEASURE => @measures);
    my $file = Moe::Peer::gguf($dir, $type);
    my %got;

    local @ENV{qw(SHAPE QUANT THREADS ASK)} = ($shape, $quant, $threads, 1);
    chdir $top or die "$top: $!\n";
    my $pid = open2(my $from, my $to, "$build/t/bench/model");

    for (1 .. Moe::Peer::rounds()) {
        for (@run) {
            my ($name, $args) = @$_;
            print $to "$name\n";
            my $answer = <$from> // die "bench/model ended\n";
            $answer = <$from> // die "bench/model ended\n"
                until $answer =~ /\.$name (\S+) /;
            push @{ $got{$name}{ours} }, (split ' ', $answer)[2];
            push @{ $got{$name}{peer} }, peer_speed($file, $args);
        }
    }

    close $to;
    waitpid $pid, 0;

    for my $name (map { $_->[0] } @run) {
        my ($ours, $theirs) =
            map { Moe::Peer::median(@{ $got{$name}{$_} }) } qw(ours peer);
        my $line = "bench $shape.$quant.$name";
        printf "$line %.5g tok/s\n$line.peer %.5g tok/s\n"
            . "$line.ratio %.3g of_peer\n", $ours, $theirs, $ours / $theirs;
    }
}
