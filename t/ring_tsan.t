# The ring under ThreadSanitizer: no report as it is, and a report for each of
# its orders when that one is weakened (or the test could not see anything).
# x86 hides weak orders from every other test; the models in t/spin/ have TSO.

use strict;
use warnings;

use Cwd ();
use File::Temp ();
use Test::More;

my $root = Cwd::abs_path(__FILE__ =~ s{[^/]*$}{..}r);
my $dir  = File::Temp::tempdir('moe-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $n    = $ENV{LONG} ? 20_000_000 : 300_000;

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!";
    local $/;
    return <$file>;
}

# Builds with one change in ring.c, runs, returns (status, what was said).
sub run {
    my ($name, $frames, $change) = @_;
    local $_ = slurp("$root/engine/ring.c");
    my $before = $_;
    $change->() if $change;
    return (-1, 'the change does not apply') if $change && $_ eq $before;
    open my $file, '>', "$dir/$name.c" or die "$dir/$name.c: $!";
    print $file $_;
    close $file or die "$dir/$name.c: $!";
    my $out = `gcc -std=c11 -O1 -g -fsanitize=thread -iquote $root/engine \\
        $root/t/tools/ring_threads.c $root/engine/ring_peer.c $dir/$name.c \\
        -o $dir/$name -lpthread 2>&1`;
    return (-1, $out) if $?;
    $out .= `TSAN_OPTIONS=halt_on_error=1:exitcode=66 $dir/$name $frames 2>&1`;
    return ($? >> 8, $out);
}

open my $probe, '>', "$dir/probe.c" or die;
print $probe 'int main(void) { return 0; }';
close $probe;
plan skip_all => 'gcc has no working -fsanitize=thread here'
    if system("gcc -fsanitize=thread $dir/probe.c -o $dir/probe 2>/dev/null"
              . " && $dir/probe 2>/dev/null") != 0;

my ($status, $out) = run('right', $n);
is($status, 0, "$n frames each way: no report") or diag($out);
note($out);

sub relaxed {
    my ($access, $order) = @_;
    return sub { s/\Q$access\E, __ATOMIC_$order/$access, __ATOMIC_RELAXED/ };
}

my %mutant = (
    'tail is stored relaxed' => relaxed('&tx->own->tail, tx->tail', 'SEQ_CST'),
    'tail is loaded relaxed' => relaxed('&rx->peer->tail', 'SEQ_CST'),
    'head is stored relaxed' => relaxed('&rx->own->head, rx->head', 'RELEASE'),
    'head is loaded relaxed' => relaxed('&tx->peer->head', 'ACQUIRE'),
);

my $i = 0;
for my $name (sort keys %mutant) {
    ($status, $out) = run('mutant' . $i++, 100_000, $mutant{$name});
    is($status, 66, "$name: a report") or diag($out);
    like($out, qr/WARNING: ThreadSanitizer: data race/, "$name: a data race");
}

done_testing();
