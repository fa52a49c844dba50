# OpenAI's own clients for Python and Node: stream, list models, get typed
# errors and usage, against the mock engine and, where it is built and has its
# model, the real one.  The clients are installed under BUILD; where they
# cannot be had, that is said.

use strict;
use warnings;

use Test::More;
use Moe;

my $dir = "$Moe::build/clients";
my $scripts = "$Moe::root/t/tools/clients";

# Installs once; says what is missing otherwise.
sub install {
    my ($what, $there, @commands) = @_;
    return '' if -e $there;
    mkdir $dir;
    for my $c (@commands) {
        my $said = `($c) 2>&1 < /dev/null`;
        next unless $?;
        my ($why) = reverse grep { /\S/ } split /\n/, $said;
        return "the $what client cannot be installed: " . ($why // 'no reason');
    }
    return -e $there ? '' : "the $what client is not there after installing";
}

my %clients = (
    python => {
        missing => install('Python', "$dir/python/.done",
            "python3 -m venv $dir/python",
            "$dir/python/bin/pip install -q --disable-pip-version-check openai",
            "touch $dir/python/.done"),
        command => ["$dir/python/bin/python", "$scripts/chat.py"],
    },
    node => {
        missing => install('Node', "$dir/node/node_modules/openai/package.json",
            "mkdir -p $dir/node && cd $dir/node"
            . ' && npm install --no-audit --no-fund --no-save openai'),
        command => ['node', "$scripts/chat.mjs"],
    },
);
$ENV{OPENAI_DIR} = "$dir/node";
delete @ENV{grep { /^(?:https?_proxy|all_proxy|OPENAI_(?!DIR))/i } keys %ENV};

plan(skip_all => join '; ', map { $_->{missing} } values %clients)
    unless grep { !$_->{missing} } values %clients;

sub run {
    my ($moe, $name, $mode) = @_;
    my $c = $clients{$name};
    SKIP: {
        skip $c->{missing}, 1 if $c->{missing};
        my $pid = open my $out, '-|', @{ $c->{command} },
            'http://127.0.0.1:' . $moe->port, $mode or die "$name: $!";
        my $n = 0;
        while (defined(my $line = <$out>)) {
            if ($line =~ /^(not )?ok - (.*)/) {
                ok(!$1, "$name, $mode: $2");
                $n++;
            } else {
                diag "$name: $line";
            }
        }
        close $out;
        cmp_ok($n, '>', 10, "$name, $mode: ran to its end");
        # Whatever was cancelled is gone from the engine.
        ok($moe->until('end of the cancelled job', sub { !$moe->busy }),
           "$name, $mode: no job is left");
    }
}

for my $mode ('mock', 'model') {
    SKIP: {
        skip 'the engine or the demo model is not built', 1
            if 'model' eq $mode && !Moe->can_engine;
        my $moe = Moe->new;
        $mode eq 'mock' ? $moe->mock('--quiet') : $moe->engine;
        $moe->nginx->wait_ready;
        run($moe, $_, $mode) for qw(python node);
        $moe->stop;
    }
}

done_testing();
