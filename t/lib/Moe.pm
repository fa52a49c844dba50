package Moe;

# Moe.pm - the harness of t/*.t: starts an engine and an NGINX of its own in a
# temporary directory, speaks HTTP to them, and at the end asserts that both
# left cleanly and silently.  Perl's core modules only.
#
#     use Test::More;
#     use Moe;
#
#     my $moe = Moe->new;                     # skips all if it cannot run
#     $moe->mock('--tokens', 5);              # or ->engine(model => DIR)
#     $moe->nginx(location => 'gzip on;');    # see conf() for all the places
#     $moe->wait_ready;                       # /health answers 200
#     my $r = $moe->post('/v1/chat/completions', { messages => [...] });
#     is $r->{status}, 200;
#     my $s = $moe->stream('/v1/chat/completions', { ..., stream => 1 });
#     while (my $e = $s->event) { ... $e->{json} ... $e->{at} ... }
#     $moe->done;                             # asserts, and done_testing
#
# Environment: BUILD (build), TEST_NGINX (nginx), MODULE (the one in BUILD), MODEL
# (conf/demo/model), MOE_KEEP (keep the directory), MOE_LOG (level of error.log;
# notice).
# This file must not know what a single test is about.

use strict;
use warnings;

use Cwd ();
use File::Temp ();
use IO::Socket::INET;
use JSON::PP ();
use Test::More ();

use Moe::Client;
use parent 'Moe::Process';

*slurp = \&Moe::Process::slurp;
*children = \&Moe::Process::children;

our $root  = Cwd::abs_path(__FILE__ =~ s{[^/]*$}{../..}r);
our $build = Cwd::abs_path($ENV{BUILD} // "$root/build") // "$root/build";

my @alive;                  # every Moe of this process, for END


sub new {
    my ($class, %o) = @_;

    my $self = bless {
        nginx  => $o{nginx} // $ENV{TEST_NGINX} // find('nginx'),
        module => $o{module} // $ENV{MODULE} // "$build/ngx_http_moe_module.so",
        # Lines of error.log that the test expects; newer ones have "http2 on".
        allow  => [qr/the "listen [.]{3} http2" directive is deprecated/],
        ports  => {},
        exits  => {},       # pid => wait status of what has ended
        socket => 'engine.sock',
    }, $class;

    Test::More::plan(skip_all => 'no nginx binary') unless $self->{nginx};
    Test::More::plan(skip_all => "$self->{module} is not built")
        unless -e $self->{module};

    $self->{dir} = File::Temp::tempdir('moe-XXXXXX', TMPDIR => 1,
                                       CLEANUP => !$ENV{MOE_KEEP});
    mkdir "$self->{dir}/tmp";
    Test::More::note("directory $self->{dir}") if $ENV{MOE_KEEP};
    push @alive, $self;
    $self->sanitizers;
    return $self;
}

sub find {
    my $name = shift;
    return (grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH}),
            '/usr/sbin', '/usr/local/sbin')[0];
}

# A sanitizer in the module has to be in Debian's nginx before its first
# allocation; its reports go to files, since nginx's stderr is its error.log.
sub sanitizers {
    my $self = shift;
    my $libs = `ldd $self->{module} 2>/dev/null`;
    my $host = `ldd $self->{nginx} 2>/dev/null`;
    my @preload = map { chomp; $_ } map { `gcc -print-file-name=$_.so` }
                  grep { $libs =~ /$_/ && $host !~ /$_/ }
                  qw(libasan libtsan libubsan);

    $self->{preload} = join ':', @preload;
    $self->write('lsan.supp', join "\n", map { "leak:$_" }
                 qw(ngx_event_process_init ngx_set_environment
                    ngx_init_setproctitle));
    my $log = "log_path=$self->{dir}/sanitizer";
    $self->{env} = {
        # Debian's binary has no frame pointers to follow.
        ASAN_OPTIONS  => "$log:detect_odr_violation=0"
                         . (@preload ? ':fast_unwind_on_malloc=0' : ''),
        UBSAN_OPTIONS => "$log:print_stacktrace=1",
        TSAN_OPTIONS  => $log,
        # Leaks are told in the reports: see sub reports.
        LSAN_OPTIONS  => "suppressions=$self->{dir}/lsan.supp"
                         . ':print_suppressions=0:exitcode=0',
    };
}


# -- engine ----------------------------------------------------------------

sub mock {
    my ($self, @args) = @_;
    my $bin = "$build/t/tools/mock_engine";
    Test::More::plan(skip_all => "$bin is not built") unless -x $bin;
    return $self->start_engine($bin, @args);
}

# Path and body of a stream in which the mock does what the script says; more
# parameters of the request, or others.
sub chat {
    my ($script, %more) = @_;
    return ('/v1/chat/completions', { stream => JSON::PP::true, %more,
            messages => [{ role => 'user', content => "mock $script" }] });
}

sub model {
    return $ENV{MODEL} ? Cwd::abs_path($ENV{MODEL}) : "$root/conf/demo/model";
}

# Whether engine() has what it needs.
sub can_engine {
    return -x "$build/moe-engine" && -e model() . '/config.json';
}

# The real one: model => DIR, args => [...].
sub engine {
    my ($self, %o) = @_;
    my $bin = "$build/moe-engine";
    my $model = $o{model} // model();
    Test::More::plan(skip_all => "$bin is not built") unless -x $bin;
    Test::More::plan(skip_all => "no model in $model")
        unless -e "$model/config.json";
    return $self->start_engine($bin, '--model', $model, @{ $o{args} // [] });
}

# Returns when the engine listens; wait_ready() sees that it has its model.
sub start_engine {
    my ($self, @cmd) = @_;
    my $path = "$self->{dir}/$self->{socket}";
    $self->{engine_cmd} = [@cmd];
    my $pid = $self->{engine} =
        $self->spawn('engine.log', @cmd, '--socket', $path);
    $self->until('start of the engine', sub {
        defined $self->ended($pid)
            ? die("the engine ended:\n" . $self->tails) : -S $path;
    }, 60);
    return $pid;
}

sub restart_engine {
    my $self = shift;
    return $self->start_engine(@{ $self->{engine_cmd} });
}

# Asks the engine to leave; asserts that it does so with status 0.
sub stop_engine {
    my $self = shift;
    my $pid = delete $self->{engine} // return;
    kill 'TERM', $pid unless defined $self->ended($pid);
    my $status = $self->await_exit('the engine', $pid, 60);
    Test::More::is($status, 0, 'the engine exits with 0');
}

# kill -9 of the parent and its children at once, and their socket's file.
sub kill_engine {
    my $self = shift;
    my $pid = delete $self->{engine} // return;
    my @all = ($pid, children($pid));
    kill 'KILL', @all;
    $self->until('end of the engine', sub {
        $self->ended($pid);
        !grep { kill 0, $_ } @all;
    });
    unlink "$self->{dir}/$self->{socket}";
}

# Processes of the engine: its parent first.
sub engine_pids {
    my $self = shift;
    return ($self->{engine}, children($self->{engine}));
}


# -- nginx -----------------------------------------------------------------

# A port that was free a moment ago; the same one for the same name.
sub port {
    my ($self, $name) = @_;
    return $self->{ports}{ $name // '' } //= do {
        my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')
            or die "no port: $!";
        $s->sockport;
    };
}

# Fills in a configuration.  %%GLOBALS%% and %%HTTP%% are what each one here
# needs; %%PORT%% and %%PORT_name%% are free ports.
sub expand {
    my ($self, $text) = @_;
    my $dir = $self->{dir};
    my $globals = join "\n",
        $> == 0 ? 'user root;' : (),
        "pid $dir/nginx.pid;",
        "error_log $dir/error.log " . ($ENV{MOE_LOG} // 'notice') . ';',
        # What a binary upgrade is to inherit.
        (map { "env $_;" } sort keys %{ $self->{env} },
         $self->{preload} ? 'LD_PRELOAD' : ()),
        "load_module $self->{module};";
    my $http = join "\n", "access_log $dir/access.log;",
        (map { "${_}_temp_path $dir/tmp/$_;" }
         qw(client_body proxy fastcgi uwsgi scgi));
    my %word = (GLOBALS => $globals, HTTP => $http, DIR => $dir,
                SOCKET => "unix:$dir/$self->{socket}", ROOT => $root,
                PORT => $self->port);
    $text =~ s{%%(?:PORT_(\w+)|(\w+))%%}{
        defined $1 ? $self->port($1) : $word{$2} // die "no such word: $2"
    }gex;
    return $text;
}

# Places in the default configuration: main, http, engine, server, location;
# workers => N; or conf => a whole text of one's own.
sub conf {
    my ($self, %o) = @_;
    my %in = map { $_ => $o{$_} // '' } qw(main http engine server location);
    my $workers = $o{workers} // 1;
    return $self->expand($o{conf} // <<"CONF");
%%GLOBALS%%
worker_processes $workers;
$in{main}
events { worker_connections 2048; }
http {
    %%HTTP%%
    moe_engine main { socket %%SOCKET%%; $in{engine} }
    $in{http}
    server {
        listen 127.0.0.1:%%PORT%%;
        listen 127.0.0.1:%%PORT_h2%% http2;
        $in{server}
        location /v1/      { moe_pass main; $in{location} }
        location = /health { moe_health main; }
    }
}
CONF
}

sub nginx_command {
    my ($self, @more) = @_;
    return ('env', $self->{preload} ? "LD_PRELOAD=$self->{preload}" : (),
            $self->{nginx}, '-p', $self->{dir}, '-e', "$self->{dir}/error.log",
            '-c', "$self->{dir}/nginx.conf", @more);
}

# nginx -t: (true if the configuration is accepted, what was said).
sub test_conf {
    my ($self, %o) = @_;
    # What it refuses belongs to the answer, not to the log of this test.
    $self->write('nginx.conf', $self->conf(%o) =~ s/error\.log/conf.log/r);
    unlink "$self->{dir}/conf.out";
    my $pid = $self->spawn('conf.out', map { s/error\.log$/conf.log/r }
                           $self->nginx_command('-t'));
    my $status = $self->await_exit('nginx -t', $pid);
    return ($status == 0, slurp("$self->{dir}/conf.out"));
}

# Starts it; returns when its port answers.
sub nginx {
    my ($self, %o) = @_;
    $self->write('nginx.conf', $self->conf(%o));
    my $pid = $self->spawn('nginx.out', $self->nginx_command);
    my $status = $self->await_exit('nginx going into the background', $pid);
    die "nginx does not start:\n" . slurp("$self->{dir}/nginx.out") if $status;
    $self->{master} = $self->until('pid file', sub { $self->pid_in('') });
    $self->until('port', sub {
        IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->port)
    });
    return $self;
}

sub pid_in {
    my ($self, $suffix) = @_;
    return slurp("$self->{dir}/nginx.pid$suffix") =~ /^(\d+)$/m ? $1 : 0;
}

# Workers of the running configuration; those that shut down are not listed.
sub workers {
    my ($self, $master) = @_;
    return grep { slurp("/proc/$_/cmdline") =~ /worker process\0*$/ }
           children($master // $self->{master});
}

# /health answers 200: the engine is attached and has its model.
sub wait_ready {
    my ($self, $seconds) = @_;
    $self->until('/health with 200', sub {
        defined $self->{engine} && defined $self->ended($self->{engine})
            and die "the engine ended:\n" . $self->tails;
        $self->get('/health')->{status} == 200;
    }, $seconds // 120);
    return $self;
}

# What /health says of the engine and of the worker that answers.
sub health { return $_[0]->get('/health')->{json} // {} }

# Jobs that are somewhere: in the engine, or a worker waits for their end.
sub busy {
    my $h = $_[0]->health;
    return ($h->{running} // 0) + ($h->{queued} // 0)
           + ($h->{worker}{open} // 0);
}

# New workers from the (perhaps changed) configuration; streams live on in the
# old ones.  Returns when the new ones are there.
sub reload {
    my ($self, %o) = @_;
    $self->write('nginx.conf', $self->conf(%o)) if %o;
    my %old = map { $_ => 1 } $self->workers;
    kill 'HUP', $self->{master};
    $self->until('new workers', sub {
        my @now = $self->workers;
        @now && !grep { $old{$_} } @now;
    });
}

# Binary upgrade: USR2, then QUIT to the old master, whose streams live on.
# Returns the old master's pid; it ends when they do.
sub upgrade {
    my $self = shift;
    my $old = $self->{master};
    kill 'USR2', $old;
    $self->until('old pid file', sub { $self->pid_in('.oldbin') == $old });
    my $new = $self->until('new master', sub {
        my $p = $self->pid_in('');
        $p && $p != $old && $self->workers($p) && $p;
    });
    kill 'QUIT', $old;
    $self->{master} = $new;
    return $old;
}

sub stop_nginx {
    my ($self, $signal) = @_;
    my $pid = delete $self->{master} // return;
    kill $signal // 'QUIT', $pid;
    my $status = $self->await_exit('nginx', $pid, 60);
    Test::More::is($status, 0, 'nginx exits with 0');
}


# -- HTTP ------------------------------------------------------------------

sub client {
    my ($self, %o) = @_;
    return Moe::Client->new(port => $self->port, %o);
}

sub get {
    my ($self, $path, %headers) = @_;
    return $self->client->request('GET', $path, undef, %headers)->response;
}

# The body is sent as it is, or as JSON if it is a reference.
sub post {
    my ($self, $path, $body, %headers) = @_;
    return $self->client->request('POST', $path, $body, %headers)->response;
}

# Sends a request, reads the head of the answer, and returns the client: its
# {status}, {headers}, and event() until that is undef.
sub stream {
    my ($self, $path, $body, %headers) = @_;
    my $c = $self->client->request('POST', $path, $body, %headers);
    $c->head;
    return $c;
}


# -- the end ---------------------------------------------------------------

sub log { return slurp("$_[0]{dir}/error.log") }

# Lines of error.log above notice that this test causes on purpose.
sub allow_log {
    my ($self, @re) = @_;
    push @{ $self->{allow} }, @re;
}

sub tails {
    my $self = shift;
    return join '', map {
        my @l = split /^/, slurp("$self->{dir}/$_");
        @l ? ("-- $_\n", @l > 20 ? @l[-20 .. -1] : @l) : ();
    } qw(engine.log error.log);
}

# What sanitizers have said; not that NGINX leaves to exit() what it made of a
# configuration, as it does where it only tests one or goes into the background.
# Where NGINX has no names for its own functions, only leaks of the module count.
sub reports {
    my $self = shift;
    my $fine = qr{ngx_(?:init_cycle|process_options)
                  |ngx_create_pool.*\n.*[ ]in[ ]main[ ]}x;
    my $not_ours = qr{\A(?!.*ngx_http_moe)}s;
    $fine = qr{$fine|$not_ours} if $self->{preload};
    return grep {
        my @leaks = /^(?:Direct|Indirect) leak .*\n(?:\s+#.*\n)+/mg;
        /\S/ && (!@leaks || grep { !/$fine/ } @leaks);
    } map { split /^=+\n/m, slurp($_) } glob "$self->{dir}/sanitizer*";
}

# Stops everything and asserts that nothing was wrong.
sub stop {
    my $self = shift;
    $self->stop_nginx if $self->{master};
    $self->stop_engine if $self->{engine};

    my @bad = grep { my $l = $_; !grep { $l =~ $_ } @{ $self->{allow} } }
              grep { /\[(?:warn|error|crit|alert|emerg)\]
                      |exited[ ]with[ ]code[ ](?!0$)/x }
              split /^/, $self->log;
    Test::More::is("@bad", '', 'error.log has no line above notice');

    Test::More::is(join('', $self->reports), '', 'no sanitizer report');
    @alive = grep { $_ != $self } @alive;
}

sub done {
    my $self = shift;
    $self->stop;
    Test::More::diag($self->tails) unless Test::More->builder->is_passing;
    Test::More::done_testing();
}

# A test that dies shows what the logs say.
END {
    my $status = $?;
    if ($status) { Test::More::diag($_->tails) for @alive }
    $? = $status;
}

1;
