# The module is loaded and configured, and no engine is there: NGINX is what it
# was.  Files, a proxy, gzip, error pages, reload, upgrade and the end are as
# with no module at all, and a worker that waits for an engine sleeps.

use strict;
use warnings;

use Test::More;
use Time::HiRes ();

use Moe;

my $moe = Moe->new;

# The same, with all that can be said of the module above such locations, and
# without the module.
my $ours = <<'CONF';
    moe_engine other { socket unix:%%DIR%%/a; socket unix:%%DIR%%/b; }
    moe_token_zone $remote_addr zone=keys:1m state=%%DIR%%/keys.state;
    moe_limit_tokens zone=keys rate=1/h burst=1;
    moe_cors on;
    moe_resume 30s;
    moe_priority 1;
    moe_cache_salt $remote_addr;
    moe_header_delay 1s;
CONF
my $plain = <<'CONF';
    client_max_body_size 1k;
    location / { root %%DIR%%/www; gzip on; gzip_min_length 1;
                 gzip_types text/plain text/event-stream; }
    location /proxy/ { proxy_pass http://127.0.0.1:%%PORT%%/; }
    location /post/ { proxy_pass http://127.0.0.1:%%PORT%%/files/; }
    location /gone/ { error_page 410 = /page.txt; return 410; }
    location /no/ { deny all; }
    location /php/ { return 301 /there; }
CONF

mkdir "$moe->{dir}/www";
$moe->write('www/page.txt', join '', map { "line $_\n" } 1 .. 1000);
$moe->write('www/stream', "data: {}\n\n");

my @ask = (['GET', '/page.txt'], ['GET', '/page.txt', 'Accept-Encoding' => 'gzip'],
           ['HEAD', '/page.txt'], ['GET', '/page.txt', Range => 'bytes=5-9'],
           ['GET', '/nothing'], ['GET', '/proxy/page.txt'], ['GET', '/stream'],
           ['GET', '/gone/x'], ['GET', '/no/x'], ['GET', '/php/x'],
           ['POST', '/page.txt'], ['POST', '/post/x', 'Content-Length' => 2000],
           ['GET', '/page.txt', Origin => 'https://a.example'],
           ['OPTIONS', '/page.txt', Origin => 'https://a.example',
            'Access-Control-Request-Method' => 'POST'],
           ['GET', '/page.txt', 'X-Request-ID' => 'abc',
            Authorization => 'Bearer x']);

# All that a client sees, but for the time and what follows from it.
sub answers {
    return [map {
        my ($method, $path, %headers) = @$_;
        my $r = $moe->client->request($method, $path, undef, %headers)->response;
        delete @{ $r->{headers} }{qw(date)};
        [$method, $path, @$r{qw(status headers body)}];
    } @ask];
}

my $bare = $moe->conf(server => $plain) =~ s/^load_module.*\n//mr;
$bare =~ s/^\s*moe_engine.*\n|^\s*location.*moe_(?:pass|health).*\n//mg;
$moe->nginx(conf => $bare =~ s/%/%/gr);
my $want = answers();
$moe->stop_nginx;

$moe->nginx(http => $ours, server => $plain);
my $got = answers();
is_deeply $got->[$_], $want->[$_],
    "@{ $ask[$_] }: $want->[$_][2], as without the module" for 0 .. $#ask;
is $moe->get('/health')->{status}, 503, 'while it has no engine';

# A connection that waits keeps a worker that leaves no longer than without us.
my ($worker) = $moe->workers;
my $idle = $moe->client->request('GET', '/page.txt');
$idle->response;
$moe->reload;
$moe->until('the end of the old worker', sub { !Moe::Process::alive($worker) }, 10);
pass 'a reload: the old worker leaves at once';
is_deeply answers(), $want, 'and all is the same';

# Three sockets to try, each once a second at most: a worker sleeps between.
sub wakes {
    my $pid = shift;
    return Moe::slurp("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m
           ? $1 : die "no status of $pid";
}

($worker) = $moe->workers;
Time::HiRes::sleep(2);
my ($n, $from) = (wakes($worker), Time::HiRes::time());
Time::HiRes::sleep(3);
my $each = (wakes($worker) - $n) / (Time::HiRes::time() - $from);
cmp_ok $each, '<', 20, "it wakes $each times a second";

my $old = $moe->upgrade;
$moe->await_exit('the old master', $old, 10);
is_deeply answers(), $want, 'an upgrade, and all is the same';
$moe->stop_nginx('TERM');

$moe->allow_log(qr/access forbidden/, qr/open\(\).*nothing/,
                qr/too large body/);
$moe->done;
