# An engine is replaced by another one at the same socket, under load, again and
# again: the old one ends what it has, or hands it over when its time is up, and
# no client sees anything (D5, D6).  With the demo model.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

plan skip_all => 'the engine or the demo model is not built'
    unless Moe->can_engine;

my ($n_streams, $n_upgrades) = $ENV{LONG} ? (100, 10) : (12, 3);
my $true = JSON::PP::true;
my $moe = Moe->new;

sub ask {
    my ($i, $n_tok) = @_;
    return $moe->client(timeout => 300)->request('POST',
        '/v1/chat/completions', { stream => $true, max_tokens => $n_tok + $i,
        ignore_eos => $true, $i % 2 ? (temperature => 0)
                                    : (temperature => 1, seed => $i + 1),
        messages => [{ role => 'user', content => "What is 3 * $i?" }] });
}

sub told {
    my $r = shift->head->collect;
    return "$r->{reasoning}|$r->{content}|$r->{finish}|"
           . ($r->{error} ? $r->{error}{code} : 'done');
}


my @args = ('--max-seqs', 16);
$moe->engine(args => \@args);
$moe->nginx(engine => 'resume_timeout 120s; queue 1000; queue_timeout 600s;');
$moe->wait_ready;

my $n_tok = 300;
my @calm = map { told(ask($_, $n_tok)) } 0 .. 5;
is scalar(grep { /\|length\|done$/ } @calm), 6, 'undisturbed answers';

my $path = "$moe->{dir}/engine.sock";
sub inode { return (stat $path)[1] // 0 }

# The next engine; the old one's pid.
sub replace {
    my @more = @_;
    my ($old, $was) = ($moe->{engine}, inode());
    $moe->{engine} = $moe->spawn('engine.log', "$Moe::build/moe-engine",
        '--model', Moe->model, @args, '--socket', $path, '--replace', @more);
    $moe->until('takeover', sub {
        defined $moe->ended($moe->{engine})
            ? die("the engine ended:\n" . $moe->tails)
            : inode() && inode() != $was }, 60);
    return $old;
}

for my $round (1 .. $n_upgrades) {
    my @s = map { ask($_ % 6, $n_tok) } 0 .. $n_streams - 1;
    my $at = $moe->health->{output_tokens} // 0;
    $moe->until('tokens', sub { ($moe->health->{output_tokens} // 0) != $at });
    my $old = replace('--drain', $round == 2 ? 1 : 30);
    my $late = ask(1, $n_tok);
    is scalar(grep { told($s[$_]) ne $calm[$_ % 6] } 0 .. $#s), 0,
        "upgrade $round: $n_streams streams to the byte";
    is told($late), $calm[1], 'and one that came then';
    is $moe->await_exit('the old engine', $old, 60), 0, 'the old engine leaves';
    ok -S $path, 'and leaves the socket to the new one';
}

# Out of time in the middle of its streams: the new engine goes on with them.
unlike Moe::slurp("$moe->{dir}/error.log"), qr/has lost/, 'nothing was lost';

$moe->allow_log(qr{the engine is gone});        # each of the old ones

# Nothing is taken over without being told to.
my $second = `$Moe::build/moe-engine --model @{[ Moe->model ]} --socket $path 2>&1`;
like $second, qr/somebody else listens there/, 'not without --replace';
is $moe->post('/v1/chat/completions', { max_tokens => 2, messages =>
    [{ role => 'user', content => 'x' }] })->{status}, 200, 'it serves on';

$moe->done;
