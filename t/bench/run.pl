#!/usr/bin/env perl
# Runs every benchmark that this machine can run ($BUILD/t/bench/*, t/bench/*.pl
# but this one, and gateway.pl, which takes minutes: `make bench-gateway`),
# collects their lines
#
#     bench NAME VALUE UNIT
#
# prints them as one table and writes them to $BUILD/bench.json.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename;
use JSON::PP;
use POSIX qw(strftime);

my $dir = dirname(abs_path(__FILE__));
my $build = $ENV{BUILD} or die "BUILD is not set: call `make bench`\n";
chomp(my $commit = `git -C $dir rev-parse --short HEAD 2>/dev/null` || 'none');
my ($cpu) = map { /^model name\s*:\s*(.+)$/ ? $1 : () } slurp('/proc/cpuinfo');
my $machine = sprintf '%s, %d CPUs', $cpu // 'unknown CPU',
    scalar grep { /^processor\s*:/ } slurp('/proc/cpuinfo');
my (@rows, $failed);

my @programs = sort grep { -x && -f && !/\.d$/ } glob "$build/t/bench/*";
push @programs, sort grep { basename($_) !~ /^(?:run|gateway)\.pl$/ } glob "$dir/*.pl";

for my $program (@programs) {
    my $name = basename($program);
    my @command = $program =~ /\.pl$/ ? ($^X, "-I$dir/../lib", $program)
                                      : ($program);
    print STDERR "== $name\n";
    open my $out, '-|', @command or die "$program: $!\n";
    while (<$out>) {
        if (/^bench (\S+) (\S+) (\S+)$/) {
            push @rows, { name => $1, value => $2 + 0, unit => $3,
                          machine => $machine, commit => $commit };
        } else {
            print STDERR "   $_";
        }
    }
    if (!close $out) {
        print STDERR "   $name failed, status $?\n";
        $failed = 1;
    }
}

open my $json, '>', "$build/bench.json" or die "$build/bench.json: $!\n";
print $json JSON::PP->new->pretty->canonical->encode(
    { date => strftime('%Y-%m-%d', gmtime), results => \@rows });
close $json or die "$build/bench.json: $!\n";

print "$machine, commit $commit, ", strftime('%Y-%m-%d', gmtime), "\n";
printf "%-44s %14.6g %s\n", @$_{qw(name value unit)} for @rows;
exit($failed ? 1 : 0);

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or return;
    return <$file>;
}
