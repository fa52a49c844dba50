#!/usr/bin/env perl
# Tokens a second through one NGINX worker: the mock engine writes as fast as
# its credits let it, one load client reads 1 and 64 streams over loopback.
# Then 64 streams at 20 tokens a second each: what one token costs the worker.
use strict;
use warnings;
use Test::More ();
use Moe;

my $n_tokens = 2000;

my $moe = Moe->new;
$moe->mock('--quiet', '--script', "tokens=$n_tokens delay_ms=0");
$moe->nginx;
$moe->wait_ready;

for my $n (1, 64) {
    my $out = load($n, $n * ($n == 1 ? 20 : 4), 'flood');
    my ($rate) = $out =~ /events_per_s (\d+)/ or die "load printed: $out";
    print "bench worker.flood_$n $rate events/s\n";
}

my $before = cpu_us();
my $out = load(64, 64, 'mock tokens=100 delay_ms=50');
my ($events) = $out =~ /events (\d+)/ or die "load printed: $out";
printf "bench worker.cpu_per_event_64x20 %.2f us\n",
    (cpu_us() - $before) / $events;
my ($p50, $p99) = $out =~ /gap_us (\d+) (\d+)/;
print "bench worker.gap_64x20_p50 $p50 us\n";
print "bench worker.gap_64x20_p99 $p99 us\n";

$moe->done;

sub load {
    my ($streams, $requests, $text) = @_;
    my $body = qq({"stream":true,"max_tokens":100000,"messages":)
             . qq([{"role":"user","content":"$text"}]});
    open my $pipe, '-|', "$Moe::build/t/tools/load", $moe->port,
        '/v1/chat/completions', $streams, $requests, $body or die "load: $!\n";
    my $out = join '', <$pipe>;
    close $pipe or die "load failed: $out";
    return $out;
}

# CPU time of the worker so far: its scheduler statistics, nanoseconds.
sub cpu_us {
    my ($pid) = $moe->workers;
    open my $file, '<', "/proc/$pid/schedstat" or die "schedstat: $!\n";
    return (split ' ', <$file>)[0] / 1000;
}
