#!/usr/bin/env perl
# System calls a token in one NGINX worker: 64 streams at 50 tokens a second
# each, under strace -c.  Its overhead does not change the count by much: what
# is slower is woken less often, never more.
use strict;
use warnings;
use Test::More ();
use Moe;

my $strace = Moe::find('strace') or die "no strace\n";
my ($streams, $tokens) = (64, 200);
my $moe = Moe->new;
$moe->mock('--quiet');
$moe->nginx;
$moe->wait_ready;

my ($pid) = $moe->workers;
my $file = "$moe->{dir}/strace";
my $tracer = $moe->spawn('strace.out', $strace, '-c', '-p', $pid, '-o', $file);
$moe->until('strace', sub { Moe::slurp("$moe->{dir}/strace.out") =~ /attached/ });
my $body = qq({"stream":true,"messages":[{"role":"user",)
         . qq("content":"mock tokens=$tokens delay_ms=20 step_ms=20"}]});
system("$Moe::build/t/tools/load", $moe->port, '/v1/chat/completions',
       $streams, $streams, $body) == 0 or die "load failed\n";
kill 'INT', $tracer;
$moe->await_exit('strace', $tracer);

my $n = 0;
for (split /\n/, Moe::slurp($file)) {
    my ($calls, $name) = /^\s*\S+\s+\S+\s+\S+\s+(\d+)(?:\s+\d+)?\s+(\w+)$/
        or next;
    next if $name eq 'total';
    $n += $calls;
    printf "bench syscalls.%s %.4f calls/token\n", $name,
        $calls / ($streams * $tokens) if $calls > $streams;
}
printf "bench syscalls.all %.4f calls/token\n", $n / ($streams * $tokens);
$moe->done;
