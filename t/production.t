# conf/nginx-production.conf is accepted as it stands, but for its paths, and
# does what it says: keys, budgets, TLS, preflights, a log that is JSON, metrics,
# the other cluster.  The units of systemd are well-formed.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my $openssl = Moe::find('openssl') or plan skip_all => 'no openssl';
my $curl = Moe::find('curl') or plan skip_all => 'no curl';

my $moe = Moe->new;
my $dir = $moe->{dir};
system("$openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
       . " -keyout $dir/key.pem -out $dir/cert.pem 2> $dir/openssl.out") == 0
    or plan skip_all => 'openssl makes no certificate';

my $conf = Moe::slurp("$Moe::root/conf/nginx-production.conf");
my $globals = $moe->expand('%%GLOBALS%%');
$conf =~ s/^(?:load_module|user|pid|error_log|worker_rlimit_nofile)[^\n]*\n//mg;
$conf = "$globals\n$conf";
$conf =~ s/^\s*listen \[::\][^\n]*\n//mg;
$conf =~ s/listen 443/'listen 127.0.0.1:' . $moe->port('tls')/e;
$conf =~ s/listen 127.0.0.1:9180/'listen 127.0.0.1:' . $moe->port/e;
$conf =~ s{/etc/ssl/certs/chat.example.org.pem}{$dir/cert.pem};
$conf =~ s{/etc/ssl/private/chat.example.org.key}{$dir/key.pem};
$conf =~ s{/run/moe/a.sock}{$dir/$moe->{socket}};
$conf =~ s{/run/moe/b.sock}{$dir/b.sock};
$conf =~ s{/var/log/nginx/moe.log}{$dir/moe.log}g;
$conf =~ s{(server )cluster.example.org:443}{"${1}127.0.0.1:" . $moe->port('cloud')}e;
$conf =~ s{https://cloud}{http://cloud};
my $cloud = $moe->port('cloud');
my $temp = $moe->expand('%%HTTP%%') =~ s/^access_log[^\n]*\n//r;
$conf =~ s/^http \{\n/http {\n$temp
    server {
        listen 127.0.0.1:$cloud;
        location \/ { return 200 "cloud \$http_authorization \$http_content_length"; }
    }
/m;

$moe->mock('--quiet');
$moe->nginx(conf => $conf =~ s/%/%/gr);
$moe->wait_ready;

# curl to the TLS server: status, headers and body as one text.
sub ask {
    my ($script, @args) = @_;
    my $json = JSON::PP::encode_json({ stream => JSON::PP::true,
        messages => [{ role => 'user', content => "mock $script" }] });
    $moe->write('ask.json', $json);
    my $port = $moe->port('tls');
    open my $out, '-|', $curl, '-skiN', '--max-time', 20, '--data-binary',
        "\@$dir/ask.json", @args, "https://127.0.0.1:$port/v1/chat/completions"
        or die "curl: $!";
    return do { local $/; <$out> };
}

my @alice = ('-H', 'Authorization: Bearer sk-change-me-1');

my $r = ask('tokens=5', @alice);
like $r, qr{^HTTP/2 200}, 'a stream over TLS and HTTP/2';
is scalar(() = $r =~ /"content":"w\d /g), 5, 'five tokens';
like $r, qr/^x-ratelimit-remaining-tokens: \d+\r$/mi, 'what is left';
like ask('tokens=5', @alice, '--compressed'), qr/content-encoding: gzip/i,
     'compressed, if asked for';
like ask('tokens=5'), qr{^HTTP/2 401.*"authentication_error"}s, 'no key';
like ask('tokens=5', '-H', 'Authorization: Bearer x'), qr{^HTTP/2 401},
     'a wrong one';
like ask('', '-X', 'OPTIONS', '-H', 'Origin: https://chat.example.org',
         '-H', 'Access-Control-Request-Method: POST'),
     qr{^HTTP/2 204.*access-control-allow-origin: https://chat}si,
     'a preflight needs none';

$moe->stop_engine;
$moe->until('its end', sub { $moe->get('/health')->{status} == 503 });
like ask('tokens=5', @alice), qr{^HTTP/2 200.*cloud Bearer its-own-key [1-9]}s,
     'without an engine the cluster is asked, with its key and our body';
like $moe->get('/metrics')->{body}, qr/^moe_requests_total\{.*"stop"\} 2$/m,
     'metrics';

$moe->stop_nginx;
my @log = split /\n/, Moe::slurp("$dir/moe.log");
my @ok = grep { eval { JSON::PP::decode_json($_) } } @log;
is scalar @ok, scalar @log, 'each line of the log is JSON';
my $line = JSON::PP::decode_json($log[0]);
is_deeply [@$line{qw(client status model completion delivered finish)}],
          ['alice', 200, 'mock', 5, 5, 'stop'], 'and says all';

SKIP: {
    my $analyze = Moe::find('systemd-analyze') or skip 'no systemd-analyze', 2;
    for (qw(service socket)) {
        my $said = `SYSTEMD_LOG_LEVEL=warning $analyze verify \\
                    $Moe::root/conf/systemd/moe-engine\@.$_ 2>&1`;
        $said = join "\n", grep { !/is not executable: No such file/ }
                           split /\n/, $said;
        is $said, '', "moe-engine\@.$_ is well-formed";
    }
}

$moe->allow_log(qr/the engine is gone/, qr/shutting down/);
$moe->done;
