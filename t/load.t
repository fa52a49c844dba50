# The load client where the server's queue of connections is full: the kernel
# drops what comes then and tries again after a second.  A client that waited for
# that sent nothing and read nothing meanwhile, and all that was due, at once,
# afterwards: which filled the queue again.
use strict;
use warnings;

use IO::Socket::INET;
use JSON::PP;
use Test::More;

use Moe;

my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')
    or die "listen: $!\n";

# Nobody accepts, and the time is over after a second.
my @cmd = ('timeout', 30, "$Moe::build/t/tools/load", '--json', '--seconds', 1,
           '--rate', 100, $server->sockport, '/', 20, 1000, '{}');
open my $pipe, '-|', @cmd or die "load: $!\n";
my $out = join '', <$pipe>;
close $pipe;
is $?, 0, 'it ends';

# Two find a place in the queue, and the rest of the client's 20 wait.
my $r = $out =~ /^\{/ ? decode_json($out) : {};
is $r->{cut}, 20, 'as many connections are under way as may be';
cmp_ok $r->{dropped}, '>', 20, 'and who finds none open does not wait';

done_testing();
