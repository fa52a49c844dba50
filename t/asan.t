# The tests of the module and of the whole path once more, with NGINX built
# under AddressSanitizer and UndefinedBehaviorSanitizer from Debian's source, in
# which each pool allocation is a malloc, and with engines built so too.
# Minutes, and so only with LONG=1.

use strict;
use warnings;

use Test::More;

use Moe;

plan(skip_all => 'takes minutes: LONG=1 runs it') unless $ENV{LONG};
plan(skip_all => 'these binaries have a sanitizer already')
    if `ldd $Moe::build/moe-engine 2>/dev/null` =~ /lib[atl]san/;

my $nginx = "$Moe::build/nginx-asan";
my $engine = "$Moe::build/asan";

# Debian's source may be out of reach; our own is not.
my $said = `bash $Moe::root/t/tools/build-nginx-asan.sh $nginx 2>&1`;
if ($?) {
    my ($why) = reverse grep { /\S/ } split /\n/, $said;
    plan(skip_all => "nginx with sanitizers cannot be built: $why");
}
my $make = "make -s -C $Moe::root BUILD=$engine SAN=address,undefined"
           . " CFLAGS='-O1 -g' engine tools";
$said = `$make 2>&1`;
$? == 0 or die "the engine with sanitizers cannot be built:\n$said";

$ENV{TEST_NGINX} = "$nginx/nginx";
$ENV{MODULE} = "$nginx/ngx_http_moe_module.so";
$ENV{BUILD} = $engine;
delete $ENV{LONG};

for my $t (sort glob "$Moe::root/t/{module,e2e}*.t") {
    my $out = `$^X -I$Moe::root/t/lib $t 2>&1`;
    ok($? == 0, $t =~ s{.*/}{}r) or diag $out;
}

done_testing();
