# make install: each file at its place under DESTDIR and PREFIX, what they say of
# each other is where it is, and NGINX loads the module from there.

use strict;
use warnings;

use File::Find ();
use Test::More;

use Moe;

my $moe = Moe->new;
plan skip_all => 'moe-engine is not built' unless -x "$Moe::build/moe-engine";

my $dest = "$moe->{dir}/dest";
my $said = `make -s -C $Moe::root BUILD=$Moe::build NVCC= install \\
            DESTDIR=$dest PREFIX=/opt/moe MAKEFLAGS= 2>&1`;
is $?, 0, 'make install' or diag $said;

my @files;
File::Find::find(sub { push @files, $File::Find::name =~ s/^\Q$dest//r if -f },
                 $dest);
my @www = map { s{.*/}{}r } glob "$Moe::root/conf/demo/www/*";
my @want = (
    '/opt/moe/sbin/moe-engine',
    '/opt/moe/lib/nginx/modules/ngx_http_moe_module.so',
    (map { "/lib/systemd/system/moe-engine\@.$_" } qw(service socket)),
    (map { "/opt/moe/share/doc/moe/$_" }
     qw(nginx.conf nginx-production.conf directives.md grafana.json)),
    (map { "/opt/moe/share/moe/www/$_" } @www));
is_deeply [sort @files], [sort @want], 'what there is';
ok -d "$dest/etc/moe", 'a place for the engines\' settings';

like Moe::slurp("$dest/lib/systemd/system/moe-engine\@.service"),
     qr{^ExecStart=/opt/moe/sbin/moe-engine }m, 'the unit starts that engine';
like Moe::slurp("$dest/opt/moe/share/doc/moe/nginx-production.conf"),
     qr{root /opt/moe/share/moe/www;}, 'the example serves that page';
like `$dest/opt/moe/sbin/moe-engine --help`, qr/--model/, 'the engine runs';

$moe->{module} = "$dest/opt/moe/lib/nginx/modules/ngx_http_moe_module.so";
my ($ok, $why) = $moe->test_conf;
ok $ok, 'NGINX takes the module' or diag $why;

$moe->done;
