# Many streams that say little: what one costs the worker's memory, connection
# and all, and that each is served to its end.  LONG=1: 10,000 of them, or as
# many as this process may have.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

chomp(my $nofile = `bash -c 'ulimit -n'`);
my $n = $ENV{LONG} ? 10000 : 800;
$n = $nofile - 100 if $n > $nofile - 100;

my $moe = Moe->new;
$moe->mock('--quiet');
$moe->nginx(conf => <<"CONF");
%%GLOBALS%%
worker_rlimit_nofile 12000;
events { worker_connections 12000; }
http {
    %%HTTP%%
    moe_engine main { socket %%SOCKET%%; streams 10240; }
    server {
        listen 127.0.0.1:%%PORT%% backlog=4096;
        location /v1/      { moe_pass main; }
        location = /health { moe_health main; }
    }
}
CONF
$moe->wait_ready;
my ($worker) = $moe->workers;

# Streams with their first event; the next ones follow in seconds.
sub open_streams {
    my $n = shift;
    my @s = map { $moe->client(timeout => 300)->request('POST',
        '/v1/chat/completions', { stream => JSON::PP::true, messages =>
            [{ role => 'user', content => "mock $_[0]" }] }) } 1 .. $n;
    $_->head->event for @s;
    return @s;
}

$_->collect for open_streams(10, 'tokens=3');
my $before = $moe->rss($worker);
my @s = open_streams($n, 'tokens=4 delay_ms=2000 spread=1');
my $kib = ($moe->rss($worker) - $before) / $n / 1024;

SKIP: {
    skip 'a sanitizer has memory of its own', 1 if $moe->{preload};
    cmp_ok $kib, '<=', 24, "$n streams: KiB of one that is silent";
}

my $whole = grep { my $r = $_->collect; $r->{done} && !$r->{error} } @s;
is $whole, $n, "$n streams: all were served";
$moe->done;
