package Moe::Peer;

# Peer.pm - what t/bench/peer.pl and t/bench/serve.pl need to set llama.cpp
# beside this engine: the same random weights in a file that it reads, and the
# median of rounds in which both take turns, since the speed of a machine that
# others use changes within minutes.  Its files stay in $BUILD/peer.

use strict;
use warnings;

use Cwd ();
use File::Basename;
use File::Path ();

my $top = Cwd::abs_path(dirname(__FILE__) . '/../../..');

sub rounds { return $ENV{ROUNDS} || 5 }

sub median {
    my @sorted = sort { $a <=> $b } @_;
    return ($sorted[@sorted / 2] + $sorted[(@sorted - 1) / 2]) / 2;
}

# Weights of seed 1 of the shape in t/data/configs/$dir, as this type.
sub gguf {
    my ($dir, $type) = @_;
    my $build = $ENV{BUILD} // die "BUILD is not set: call `make bench`\n";
    my $file = Cwd::abs_path($build) . "/peer/$dir-$type.gguf";
    File::Path::make_path(dirname($file));
    if (!-e $file) {
        system("$build/t/tools/gguf", "$top/t/data/configs/$dir",
               "$file.new", $type, 1) == 0
            && rename("$file.new", $file) or die "$file: not made\n";
    }
    return $file;
}

1;
