# Directives: what is accepted, what is refused and with which words; defaults;
# one process, many workers, several engines.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my $moe = Moe->new;

sub conf_error {
    my ($like, $name, %o) = @_;
    my ($ok, $said) = $moe->test_conf(%o);
    ok !$ok && $said =~ $like, "refused: $name" or diag $said;
}

ok +($moe->test_conf)[0], 'the default configuration';
ok +($moe->test_conf(engine => 'queue 1; streams 16384; connect_timeout 1ms;
    queue_timeout 1h; first_token_timeout 10m; token_timeout 5s;
    request_timeout 0; ping 0; heartbeat 1s; alias a; alias b;
    resume_timeout 0; balance prefix; socket unix:/tmp/y;'))[0],
   'every option';
ok +($moe->test_conf(server => 'location /late/ { moe_pass late; }
    location /if/ { moe_pass main; if ($arg_x) { set $x 1; } }
    location /nested/ { moe_pass main; location /nested/x { return 204; } }',
    http => 'moe_engine late { socket unix:/tmp/late; }'))[0],
   'an engine that is defined after its use';

conf_error(qr/unknown moe_engine "nil" in \S+nginx\.conf:\d+/,
           'an unknown engine', server => 'location /x { moe_pass nil; }');
conf_error(qr/unknown moe_engine "nil"/, 'health of an unknown engine',
           server => 'location /x { moe_health nil; }');
conf_error(qr/duplicate moe_engine "main" in/, 'an engine twice',
           http => 'moe_engine main { socket unix:/tmp/x; }');
conf_error(qr/moe_engine "x" has no "socket"/, 'no socket',
           http => 'moe_engine x { queue 5; }');
conf_error(qr/duplicate socket "unix:\/tmp\/y"/, 'a socket twice',
           engine => 'socket unix:/tmp/y; socket unix:/tmp/y;');
conf_error(qr/more than 64 sockets in moe_engine "x"/, '65 sockets',
           http => 'moe_engine x { '
                   . join(' ', map "socket unix:/tmp/$_;", 1 .. 65) . ' }');
conf_error(qr/invalid balance "fair" in moe_engine "main", expected/,
           'an unknown balance', engine => 'balance fair;');
conf_error(qr/duplicate "queue"/, 'an option twice',
           engine => 'queue 1; queue 2;');
conf_error(qr/"moe_pass" directive is duplicate/, 'moe_pass twice',
           location => 'moe_pass main;');
conf_error(qr/expected unix:\/path/, 'a TCP socket',
           http => 'moe_engine x { socket 127.0.0.1:80; }');
conf_error(qr/is longer than 107 bytes/, 'a path that is too long',
           http => 'moe_engine x { socket unix:/' . 'x' x 108 . '; }');
conf_error(qr/unknown option "quue" in moe_engine/, 'an unknown option',
           engine => 'quue 5;');
conf_error(qr/"queue" in moe_engine takes one value/, 'two values',
           engine => 'queue 5 6;');
conf_error(qr/invalid value "$_->[1]" of "$_->[0]" in moe_engine, expected/,
           "$_->[0] $_->[1]", engine => "$_->[0] $_->[1];")
    for ['queue', 0], ['queue', 'x'], ['queue', -1], ['streams', 0],
        ['streams', 16385], ['ping', '5x'], ['token_timeout', 0],
        ['heartbeat', '10ms'], ['queue_timeout', '2d'];


# -- one process, and many -------------------------------------------------

sub whole {
    my $script = shift;
    return ('/v1/chat/completions', { @_, messages =>
            [{ role => 'user', content => "mock $script" }] });
}

$moe->mock('--quiet');
$moe->nginx(workers => 3, server => <<'CONF', http => <<'CONF2');
    location /two/ { moe_pass two; }
    location /cond/ {
        moe_pass main;
        if ($arg_x) { set $x 1; }
        limit_except POST { deny all; }
    }
    location = /v1/exact/chat/completions { moe_pass main; }
    location ~ ^/re/ { moe_pass main; }
    location /auth/ { moe_pass main; auth_basic x; auth_basic_user_file none; }
CONF
    proxy_cache_path %%DIR%%/cache keys_zone=c:1m;
    moe_engine two { socket %%SOCKET%%; }
CONF2
$moe->wait_ready;

my %pid;
$moe->until('each worker', sub {
    $pid{ $moe->get('/health')->{json}{worker}{pid} } = 1;
    keys %pid == 3;
});
pass 'three workers have their channels';
is $moe->post(whole('tokens=1'))->{status}, 200, 'prefix';
for my $path ('/two/chat/completions', '/cond/chat/completions?x=1',
              '/cond/chat/completions', '/v1/exact/chat/completions',
              '/re/v1/chat/completions') {
    is $moe->post($path, (whole('tokens=1'))[1])->{status}, 200, $path;
}
my $r = $moe->get('/cond/models');
is $r->{status}, 403, 'limit_except';
is $r->{json}{error}{type}, 'permission_error', 'its error is JSON';
$r = $moe->post('/auth/chat/completions', {});
is $r->{status}, 401, 'auth_basic';
is $r->{json}{error}{type}, 'authentication_error', 'its error is JSON';
ok $r->{headers}{'www-authenticate'}, 'with its challenge';

$moe->stop_nginx;
$moe->nginx(main => 'master_process off;');
$moe->wait_ready;
is $moe->post(whole('tokens=2'))->{json}{choices}[0]{message}{content},
   'w0 w1 ', 'a single process';

$moe->allow_log(qr/cannot be found|open\(\).*none/, qr/access forbidden/,
                qr/no user\/password/);
$moe->done;
