# The machine code of cuda/, as ptxas tells of it: where nvcc has been.  Of what
# costs a kernel its speed and changes no result, so that no other test sees it.

use strict;
use warnings;

use Test::More;

my $dir = ($ENV{BUILD} // 'build') . '/cuda';
my @told = sort glob "$dir/*.ptxas";

plan skip_all => 'no nvcc to compile cuda/ with' unless @told;

# Whose registers and loads these are: another ptxas has others.
my $release = '13.0';
my @others = grep { slurp($_) !~ /\brelease \Q$release\E,/ } @told;

plan skip_all => "$others[0] is not of nvcc $release, for which this is"
    if @others;

# Threads of a block, and blocks that a multiprocessor is to hold in its 65536
# registers.
my @held = (
    [qr/^(?:linear_kernel|gate_up_kernel|expert_kernel)I.*Li1EE/, 256, 2],
    [qr/^few_gate_up_kernelI/, 256, 2],
    [qr/^few_down_kernelI/, 512, 1],
    [qr/^combine_heads_kernel/, 256, 2],
);

# Kernels that ask for weights before they wait for the kernel ahead, and how
# often at least: in bf16, in fp8.
my @early = (
    [qr/^(?:linear|gate_up|expert|few_gate_up|few_down)_kernelIL5dtype1E/, 16],
    [qr/^(?:linear|gate_up|expert|few_gate_up|few_down)_kernelIL5dtype4E/, 8],
    [qr/^combine_heads_kernel/, 16],
    [qr/^latent_kernel/, 8],
);


# Of a mangled name, what stands in the tables above.
sub plain {
    return $_[0] =~ s/^_ZL?\d+//r;
}

sub slurp {
    open my $f, '<', $_[0] or die "$_[0]: $!";
    local $/;
    return <$f>;
}

my (%kernels, @serial);         # name => { regs, stack }, for Hopper

for my $file (@told) {
    my $kernel;

    for (split /\n/, slurp($file)) {
        if (/Compiling entry function '(\w+)' for '(\w+)'/) {
            $kernel = $2 eq 'sm_90a' ? $kernels{plain($1)} = {} : {};

        } elsif (/(\d+) bytes stack frame/) {
            $kernel->{stack} = $1;

        } elsif (/Used (\d+) registers/) {
            $kernel->{regs} = $1;

        } elsif (/wgmma.*serializ/i) {
            push @serial, "$file: $_";
        }
    }
}

ok(keys %kernels, 'kernels were compiled');
is_deeply(\@serial, [], 'no products of warpgroups wait for each other');

my @spilled;

for my $name (sort keys %kernels) {
    my $k = $kernels{$name};

    push @spilled, "$name: $k->{stack} bytes" if $k->{stack} > 0;
}

is_deeply(\@spilled, [], 'no kernel keeps registers in memory');

for my $held (@held) {
    my ($which, $threads, $blocks) = @$held;
    my @found = grep { $_ =~ $which } sort keys %kernels;
    my @many = map { "$_: $kernels{$_}{regs}" }
               grep { int(($kernels{$_}{regs} + 7) / 8) * 8 * $threads * $blocks
                      > 65536 } @found;

    ok(@found, "$which: there is one");
    is_deeply(\@many, [], "$which: $blocks blocks of $threads threads");
}


SKIP: {
    my ($tool) = grep { -x } map { "$_/cuobjdump" } split(/:/, $ENV{PATH}),
                                                    '/usr/local/cuda/bin';

    skip 'no cuobjdump', 1 unless defined $tool;

    my (%loads, $name);         # before the first wait, then the next ..
    my (%exps, $counts);        # between a wait for S and that for O

    for my $file (map { s/\.ptxas$/.o/r } @told) {
        open my $code, '-|', "$tool -sass -arch sm_90a $file 2>&1" or die;

        while (<$code>) {
            if (/Function : (\S+)/) {
                $name = plain($1);
                $loads{$name} = [0];
                $counts = 0;

            } elsif (/\bACQBULK\b/) {
                push @{ $loads{$name} }, 0;

            } elsif (/\bLDG\S*\.LTC256B\.128\b/) {
                $loads{$name}[-1]++;

            } elsif (/\bWARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)/) {
                $counts = $1 == 1;

            } elsif ($counts && /\bMUFU\.EX2\b/) {
                $exps{$name}++;
            }
        }
    }

    for my $early (@early) {
        my ($which, $least) = @$early;
        my @found = grep { $_ =~ $which } sort keys %loads;
        my @late = grep {
            my @n = @{ $loads{$_} };
            pop @n;
            !grep { $_ >= $least } @n;
        } @found;

        ok(@found, "$which: there is one");
        is_deeply(\@late, [], "$which: $least loads before the wait");
    }

    # Of 64 rows and 128 keys: while values are multiplied.
    my @gqa = grep { /^gqa_wide_kernelI/ } sort keys %loads;

    ok(@gqa, 'gqa_wide_kernel: there is one');
    is_deeply([grep { ($exps{$_} // 0) < 64 } @gqa], [],
              'gqa_wide_kernel: exp2 before the wait for values');
}

done_testing();
