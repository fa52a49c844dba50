# The protocol models: each variant that a model's head tells to run has no
# error over its whole state space, and each mutant that it lists has one.

use strict;
use warnings;

use Cwd ();
use File::Temp ();
use Test::More;

my $here = Cwd::abs_path(__FILE__ =~ s{[^/]*$}{spin}r);
my ($spin) = grep { -x } map { "$_/spin" } split /:/, $ENV{PATH};

plan skip_all => 'spin is not installed' unless $spin;

my $dir = File::Temp::tempdir('moe-XXXXXX', TMPDIR => 1, CLEANUP => 1);

# Generates, compiles and searches; returns the number of errors and what pan
# said, or undef where there is no whole search.  A mutant's is short, its
# compilation long: no optimization then.
sub search {
    my ($model, $level, @flags) = @_;
    my $out = '';
    for my $command ("spin @flags -a $here/$model",
                     "gcc -O$level -w -DMEMLIM=1000 -o pan pan.c",
                     './pan -m1000000')
    {
        $out .= `cd $dir && $command 2>&1`;
        return (undef, $out) if $?;
    }
    return (undef, $out) if $out =~ /depth too small|MEMLIM bound/;
    my ($errors) = $out =~ /errors: (\d+)/;
    return ($errors, $out);
}

for my $path (sort glob "$here/*.pml") {
    my ($model) = $path =~ m{([^/]+)$};
    open my $file, '<', $path or die "$path: $!";
    my ($head) = do { local $/; <$file> } =~ m{\A/\*(.*?)\*/}s;
    my @variants = $head =~ /^ \*   spin ((?:-D\w+ )*)-a \Q$model\E/mg;
    my ($list) = $head =~ /Mutants(.*)/s;
    my @mutants = $list =~ /^ \*   ((?:-D\w+(?: (?=-D))?)+) /mg;

    ok(@variants >= 1, "$model: variants found");
    ok(@mutants >= 3, "$model: " . @mutants . ' mutants found');

    for my $variant (@variants) {
        my @flags = split ' ', $variant;
        my ($errors, $out) = search($model, 1, @flags);
        is($errors, 0, "@{[$model, @flags]}: no error") or diag($out);

        for my $mutant (@mutants) {
            ($errors, $out) = search($model, 0, @flags,
                                     split ' ', $mutant);
            is($errors, 1, "@{[$model, @flags]}, mutant $mutant: an error")
                or diag($out);
        }
    }
}

done_testing();
