# Streams over HTTP/3, where NGINX and curl have it: token by token, an error, a
# body of several MiB, and a client that leaves.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

my $openssl = Moe::find('openssl') or plan skip_all => 'no openssl';
my $curl = Moe::find('curl');
plan skip_all => 'no curl with HTTP/3'
    unless $curl && `$curl --version` =~ /\bHTTP3\b/;

my $moe = Moe->new;
plan skip_all => 'NGINX has no HTTP/3'
    unless `$moe->{nginx} -V 2>&1` =~ /--with-http_v3_module/;

my $dir = $moe->{dir};
system("$openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
       . " -keyout $dir/key.pem -out $dir/cert.pem 2> $dir/openssl.out") == 0
    or plan skip_all => 'openssl makes no certificate';

$moe->mock('--quiet');
$moe->nginx(server => <<'CONF');
    listen 127.0.0.1:%%PORT_h3%% quic reuseport;
    ssl_certificate %%DIR%%/cert.pem;
    ssl_certificate_key %%DIR%%/key.pem;
    keepalive_timeout 2s;
CONF
$moe->wait_ready;

# A pipe from curl, whose pid is the first of the two.
sub ask {
    my ($body, @args) = @_;
    my $file = $moe->write('ask.json', JSON::PP::encode_json($body));
    my $pid = open my $out, '-|', $curl, '-skiN', '--http3-only',
        '--max-time', 20, '--data-binary', "\@$file", @args,
        'https://127.0.0.1:' . $moe->port('h3') . '/v1/chat/completions'
        or die "curl: $!";
    return ($pid, $out);
}

sub chat {
    my ($script, %more) = @_;
    return { stream => JSON::PP::true, %more, messages =>
             [{ role => 'user', content => "mock $script" }] };
}

sub whole { my $out = $_[1]; local $/; return scalar <$out> }


my ($pid, $out) = ask(chat('tokens=6 delay_ms=60'));
my ($head, @at) = '';
while (<$out>) {
    $head .= $_ unless @at;
    push @at, Time::HiRes::time() if /"content":"w\d /;
}
like $head, qr{^HTTP/3 200}, 'a stream over HTTP/3';
like $head, qr{^content-type: text/event-stream\r$}m, 'its type';
is scalar @at, 6, 'six tokens';
is scalar(grep { $at[$_] - $at[$_ - 1] > 0.01 } 1 .. $#at), 5,
   'each of which came alone';

like whole(ask(chat('error=busy'))), qr{^HTTP/3 429.*"engine_overloaded"}s,
     'a refusal';
like whole(ask(chat('', n => 0))), qr{^HTTP/3 400.*"invalid_request_error"}s,
     'a bad request';
like whole(ask({ messages => [
         { role => 'user', content => 'x' x (4 << 20) },
         { role => 'user', content => 'mock dump' }] })),
     qr{^HTTP/3 200.*n_body=41943\d\d}s, 'a body of 4 MiB';

# Who closes the connection, and who is only gone: the idle timeout tells.
for my $how ('closed', 'gone') {
    ($pid, $out) = ask(chat('tokens=100000 delay_ms=10', max_tokens => 100000),
                       $how eq 'closed' ? ('--max-time', 1) : ());
    while (<$out>) { last if /"content":"w3 / }
    is $moe->health->{worker}{open}, 1, 'a long stream';
    kill 'KILL', $pid if $how eq 'gone';
    $moe->until('CANCEL', sub { !$moe->health->{worker}{open} });
    pass "is cancelled when its client has $how";
    close $out;
}

$moe->done;
