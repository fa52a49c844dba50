# make run, start and stop: t/tools/serve.sh with the mock engine in the place
# of the real one.  It waits for /health, says where the page is, ends what it
# has started and nothing else, and says clearly why it could not.

use strict;
use warnings;

use IO::Socket::INET;
use Test::More;

use Moe;

my $moe = Moe->new;
my $mock = "$Moe::build/t/tools/mock_engine";
plan(skip_all => "$mock is not built") unless -x $mock;

my $serve = "$Moe::root/t/tools/serve.sh";
my $build = "$moe->{dir}/build";
my $model = "$moe->{dir}/model";
my $port = $moe->port;
my $run = "$build/run";

mkdir $_ for $build, $model;
symlink $mock, "$build/moe-engine";
symlink $moe->{module}, "$build/ngx_http_moe_module.so";
$moe->write('model/config.json', '{}');
@ENV{keys %{ $moe->{env} }} = values %{ $moe->{env} };

# A sanitizer's library is for NGINX alone: a shell may not live with it.
if ($moe->{preload}) {
    mkdir "$moe->{dir}/bin";
    my $nginx = $moe->write('bin/nginx', "#!/bin/sh\n"
        . "exec env LD_PRELOAD=$moe->{preload} $moe->{nginx} \"\$@\"\n");
    chmod 0755, $nginx or die "$nginx: $!";
    $ENV{PATH} = "$moe->{dir}/bin:$ENV{PATH}";
}

# (exit status, what was said)
sub serve {
    my $pid = $moe->spawn('said', $serve, @_);
    my $status = $moe->await_exit("serve.sh $_[0]", $pid, 60);
    my $said = Moe::slurp("$moe->{dir}/said");
    unlink "$moe->{dir}/said";
    return ($status & 127 ? "signal $status" : $status >> 8, $said);
}

sub pid { return Moe::slurp("$run/$_[0].pid") =~ s/\s//gr }

sub alive { return grep { $_ && Moe::Process::alive($_) } @_ }

sub port_open {
    return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
}


# -- start and stop --------------------------------------------------------

my ($status, $said) = serve('start', $build, $port, $model);
is($status, 0, 'start') or diag $said;
like($said, qr{http://127\.0\.0\.1:$port/\n}, 'start: where the page is');
like($said, qr{curl -N http://127\.0\.0\.1:$port/v1/chat/completions -d},
     'start: what to type');
is($moe->get('/health')->{status}, 200, 'start: it is ready');
my $page = $moe->get('/');
like($page->{body}, qr/<title>/, 'start: the page is there');
like($page->{headers}{'content-security-policy'}, qr/default-src 'none'/,
     'start: under a policy');
like($moe->get('/chat.js')->{headers}{'content-type'}, qr{^text/javascript},
     'start: with its script');

# The command that it tells works as it stands.
SKIP: {
    skip 'no curl', 1 unless Moe::find('curl');
    my ($curl) = $said =~ /(curl -N .*)$/m;
    like(`$curl 2>/dev/null`, qr/^data: \[DONE\]$/m, 'start: the curl line');
}

my @pids = (pid('engine'), pid('nginx'));
is(alive(@pids), 2, 'start: both pid files are right');
($status, $said) = serve('start', $build, $port, $model);
is($status, 0, 'start again');
like($said, qr/already running/, 'start again: says so');
is_deeply([pid('engine'), pid('nginx')], \@pids, 'start again: the same');
($status, $said) = serve('run', $build, $port, $model);
is($status, 1, 'run beside it is refused');

my $bad = join '', grep { /\[(?:warn|error|crit|alert|emerg)\]/ }
          split /^/, Moe::slurp("$run/error.log");
is($bad, '', 'error.log has no line above notice');

($status, $said) = serve('stop', $build);
is($status, 0, 'stop');
is(alive(@pids), 0, 'stop: both have ended');
ok(!port_open(), 'stop: the port is free');
ok(!-e "$run/$_.pid", "stop: no $_.pid") for qw(engine nginx);
($status) = serve('stop', $build);
is($status, 0, 'stop again');


# -- a pid file from before ------------------------------------------------

my $other = $moe->spawn('other', 'sleep', 600);
for my $name (qw(engine nginx)) {
    open my $f, '>', "$run/$name.pid" or die $!;
    print $f "$other\n";
}
($status, $said) = serve('start', $build, $port, $model);
is($status, 0, 'start over a pid file of some other process') or diag $said;
serve('stop', $build);
is(alive($other), 1, 'which is left alone');
kill 'TERM', $other;


# -- run -------------------------------------------------------------------

my $pid = $moe->spawn('run.out', $serve, 'run', $build, $port, $model);
$moe->until('run', sub { Moe::slurp("$moe->{dir}/run.out") =~ /Ctrl-C/ }, 60);
@pids = (pid('engine'), pid('nginx'));
is(alive(@pids), 2, 'run: both are there');
kill 'INT', $pid;
$moe->await_exit('run', $pid);
is(alive(@pids), 0, 'run: ends both when it ends');

$pid = $moe->spawn('run.out', $serve, 'run', $build, $port, $model);
$moe->until('run', sub { alive(pid('engine'), pid('nginx')) == 2 }, 60);
$moe->until('health', sub {
    port_open() && $moe->get('/health')->{status} == 200
});
@pids = (pid('engine'), pid('nginx'));
kill 'KILL', $pids[0];
is($moe->await_exit('run', $pid) >> 8, 1, 'run: ends when the engine does');
is(alive(@pids), 0, 'run: and takes nginx with it');


# -- what cannot be --------------------------------------------------------

sub refused {
    my ($what, $re, @args) = @_;
    my ($status, $said) = serve(@args);
    isnt($status, 0, "$what: refused");
    like($said, $re, "$what: says why");
    ok(!alive(pid('engine'), pid('nginx')), "$what: nothing is left");
}

refused('no model', qr/is not a model directory/,
        'start', $build, $port, "$moe->{dir}/nowhere");
refused('no port', qr/not a port: http/, 'start', $build, 'http', $model);

my $taken = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1',
                                  LocalPort => $port) or die "port: $!";
refused('a port in use', qr/Address already in use/,
        'start', $build, $port, $model);
close $taken;

refused('an engine that ends', qr/the engine has ended.*unknown|usage|option/s,
        'start', $build, $port, $model, '--no-such-option');

unlink "$build/moe-engine";
refused('no engine', qr/moe-engine is not built: make engine/,
        'start', $build, $port, $model);
unlink "$build/ngx_http_moe_module.so";
symlink '/bin/true', "$build/moe-engine";
refused('no module', qr/module\.so is not built: make module/,
        'start', $build, $port, $model);

$moe->done;
