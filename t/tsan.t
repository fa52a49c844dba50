# What several threads or processes write, under ThreadSanitizer: no report as
# it is, and a report for each mistake that somebody might make (or the test
# could not see anything).
#
# The ring, each of whose orders is weakened: x86 hides weak orders from every
# other test; the models in t/spin/ have TSO.  And what a step's rows become, by
# as many threads as the model has.

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

# Each program: its file in t/tools/, the one that is changed, and others.
my %of = (
    ring   => [qw(ring_threads ring ring_peer)],
    answer => [qw(answer_threads serve/answer sampler sched base)],
);

# Builds with one change, runs, returns (status, what was said).
sub run {
    my ($program, $name, $arg, $change) = @_;
    my ($tool, $changed, @others) = @{ $of{$program} };
    local $_ = slurp("$root/engine/$changed.c");
    my $before = $_;
    $change->() if $change;
    return (-1, 'the change does not apply') if $change && $_ eq $before;
    open my $file, '>', "$dir/$name.c" or die "$dir/$name.c: $!";
    print $file $_;
    close $file or die "$dir/$name.c: $!";
    my @sources = ("$root/t/tools/$tool.c", "$dir/$name.c",
                   map { "$root/engine/$_.c" } @others);
    my $out = `gcc -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=thread \\
        -iquote $root/engine @sources -o $dir/$name -lpthread -lm 2>&1`;
    return (-1, $out) if $?;
    $out .= `TSAN_OPTIONS=halt_on_error=1:exitcode=66 $dir/$name $arg 2>&1`;
    return ($? >> 8, $out);
}

open my $probe, '>', "$dir/probe.c" or die;
print $probe 'int main(void) { return 0; }';
close $probe;
plan skip_all => 'gcc has no working -fsanitize=thread here'
    if system("gcc -fsanitize=thread $dir/probe.c -o $dir/probe 2>/dev/null"
              . " && $dir/probe 2>/dev/null") != 0;

sub relaxed {
    my ($access, $order) = @_;
    return sub { s/\Q$access\E, __ATOMIC_$order/$access, __ATOMIC_RELAXED/ };
}

# [what is run, how often when it is right and when it is not, mistakes]
for (
    [ring => $n, 100_000, {
        'tail is stored relaxed' => relaxed('&tx->own->tail, tx->tail', 'SEQ_CST'),
        'tail is loaded relaxed' => relaxed('&rx->peer->tail', 'SEQ_CST'),
        'head is stored relaxed' => relaxed('&rx->own->head, rx->head', 'RELEASE'),
        'head is loaded relaxed' => relaxed('&tx->peer->head', 'ACQUIRE') }],
    [answer => 200, 20, {
        'one sampler for all' => sub { s/samplers\[thread\]/samplers[0]/ },
        'a count of all jobs' => sub {
            s/j->n_drawn\+\+/((struct serve *) s)->counts.output_tok++/ } }],
) {
    my ($program, $n_right, $n_wrong, $mutants) = @$_;
    my ($status, $out) = run($program, "$program-right", $n_right);
    is($status, 0, "$program, $n_right times: no report") or diag($out);
    note($out);

    my $i = 0;
    for my $name (sort keys %$mutants) {
        ($status, $out) = run($program, "$program-mutant" . $i++, $n_wrong,
                              $mutants->{$name});
        is($status, 66, "$program, $name: a report") or diag($out);
        like($out, qr/WARNING: ThreadSanitizer: data race/,
             "$program, $name: a data race");
    }
}

done_testing();
