package Moe::Engine;

# Engine.pm - an engine without NGINX, for t/engine*.t: a tiny model of random
# weights whose tokens are single bytes, ring_client to talk to it, and at the
# end the assertion that nothing is left over.  Perl's core modules only.
#
#     my $e = Moe::Engine->new(args => ['--max-seqs', 4]);
#     my @lines = $e->client('--chat', 'hello', '--max-tokens', 5);
#     $e->stop;                       # asserts status, balance and log

use strict;
use warnings;

use Cwd ();
use File::Temp ();
use JSON::PP ();
use POSIX ();
use Test::More ();
use Time::HiRes ();

our $root  = Cwd::abs_path(__FILE__ =~ s{[^/]*$}{../../..}r);
our $build = Cwd::abs_path($ENV{BUILD} // "$root/build") // "$root/build";

my @alive;


# -- the model -------------------------------------------------------------

# GPT-2's printable names of the 256 bytes.
sub byte_names {
    my ($n, @names) = 0;
    for my $b (0 .. 255) {
        my $printable = $b >= 33 && $b <= 126 || $b >= 161 && $b != 173;
        $names[$b] = chr($printable ? $b : 256 + $n++);
    }
    return @names;
}

my @special = ('<bos>', '<eos>', '<pad>');
my @added   = ('<user>', '<assistant>', '<think>', '</think>');

# Writes a model's directory; %o goes over config.json.
sub model {
    my ($dir, %o) = @_;
    my $json = JSON::PP->new->utf8->canonical;
    my ($id, %vocab) = 0;

    $vocab{$_} = $id++ for @special, byte_names();
    my @tokens = map {
        { id => $_->[0], content => $_->[1], special => $_->[2],
          single_word => JSON::PP::false, lstrip => JSON::PP::false,
          rstrip => JSON::PP::false, normalized => JSON::PP::false }
    } (map { [$vocab{$_}, $_, JSON::PP::true] } @special),
      (map { [$id++, $_, JSON::PP::false] } @added);

    my %level = (type => 'ByteLevel', add_prefix_space => JSON::PP::false,
                 trim_offsets => JSON::PP::true, use_regex => JSON::PP::false);
    my %file = (
        'tokenizer.json' => {
            version => '1.0', truncation => undef, padding => undef,
            added_tokens => \@tokens, normalizer => undef,
            pre_tokenizer => \%level, post_processor => undef,
            decoder => \%level,
            model => { type => 'BPE', dropout => undef, unk_token => undef,
                       continuing_subword_prefix => undef,
                       end_of_word_suffix => undef,
                       fuse_unk => JSON::PP::false,
                       byte_fallback => JSON::PP::false,
                       vocab => \%vocab, merges => [] },
        },
        'tokenizer_config.json' => {
            add_bos_token => JSON::PP::true, bos_token => '<bos>',
            eos_token => '<eos>', pad_token => '<pad>',
            tokenizer_class => 'PreTrainedTokenizerFast',
            chat_template => '{{ bos_token }}{% for m in messages %}'
                . '{{ "<" + m.role + ">" + m.content }}'
                . '{% if m.role == "assistant" %}{{ eos_token }}{% endif %}'
                . '{% endfor %}{% if add_generation_prompt %}'
                . '{{ "<assistant>" }}{% endif %}'
                . '{% if think is defined %}{{ "<think>" }}{% endif %}'
                . '{% if fail is defined %}'
                . '{{ raise_exception("no such thing") }}{% endif %}',
        },
        'generation_config.json' => { eos_token_id => 1 },
        'config.json' => {
            architectures => ['DeepseekV3ForCausalLM'],
            model_type => 'deepseek_v3', vocab_size => $id + 5,
            bos_token_id => 0, eos_token_id => 1,
            hidden_size => 64, intermediate_size => 128,
            moe_intermediate_size => 32, num_hidden_layers => 2,
            num_attention_heads => 2, num_key_value_heads => 2,
            n_routed_experts => 8, n_shared_experts => 1,
            num_experts_per_tok => 2, n_group => 2, topk_group => 1,
            first_k_dense_replace => 1, moe_layer_freq => 1,
            routed_scaling_factor => 2, scoring_func => 'sigmoid',
            topk_method => 'noaux_tc', norm_topk_prob => JSON::PP::true,
            kv_lora_rank => 32, q_lora_rank => 32, qk_nope_head_dim => 16,
            qk_rope_head_dim => 16, v_head_dim => 16, hidden_act => 'silu',
            rms_norm_eps => 1e-6, rope_theta => 10000, rope_scaling => undef,
            max_position_embeddings => 1024, attention_bias => JSON::PP::false,
            tie_word_embeddings => JSON::PP::false, torch_dtype => 'bfloat16',
            %o
        },
    );

    for my $name (keys %file) {
        open my $f, '>', "$dir/$name" or die "$dir/$name: $!";
        print $f $json->encode($file{$name});
        close $f or die "$name: $!";
    }
    return $dir;
}


# -- the engine ------------------------------------------------------------

# Engine with the tiny model (config => {...} changes it), or model => DIR.
sub new {
    my ($class, %o) = @_;
    my $self = bless { args => $o{args} // [] }, $class;

    for my $bin ("$build/moe-engine", "$build/t/tools/ring_client") {
        Test::More::plan(skip_all => "$bin is not built") unless -x $bin;
    }

    $self->{dir} = File::Temp::tempdir('moe-XXXXXX', TMPDIR => 1, CLEANUP => 1);
    $self->{socket} = "$self->{dir}/engine.sock";
    if (!($self->{model} = $o{model})) {
        mkdir "$self->{dir}/tiny";
        $self->{model} = model("$self->{dir}/tiny", %{ $o{config} // {} });
        push @{ $self->{args} }, '--random-weights', 1;
    }
    push @alive, $self;
    return $o{start} // 1 ? $self->start : $self;
}

sub start {
    my ($self, @more) = @_;
    $self->{pid} = $self->spawn("$build/moe-engine", '--model', $self->{model},
                                '--socket', $self->{socket}, '--threads', 1,
                                @{ $self->{args} }, @more);
    $self->until('start of the engine', sub {
        die $self->log if $self->log =~ /the engine (?:exited|died)/;
        return $self->log =~ /: ready$/m;
    });
    return $self;
}

# Starts a program that writes to the log; its pid.
sub spawn {
    my ($self, @cmd) = @_;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/log" or POSIX::_exit(126);
        open STDERR, '>&', \*STDOUT;
        { no warnings 'exec'; exec { $cmd[0] } @cmd; }
        POSIX::_exit(127);
    }
    return $pid;
}

sub until {
    my ($self, $what, $sub) = @_;
    my $end = Time::HiRes::time() + 60;
    my $r;
    until ($r = $sub->()) {
        die "$what: not within time\n" . $self->log
            if Time::HiRes::time() > $end;
        Time::HiRes::sleep(0.01);
    }
    return $r;
}

sub log {
    my $self = shift;
    open my $f, '<', "$self->{dir}/log" or return '';
    local $/;
    return <$f> // '';
}

# The process that serves.
sub child {
    my $self = shift;
    open my $f, '<', "/proc/$self->{pid}/task/$self->{pid}/children"
        or return;
    return (split ' ', <$f> // '')[0];
}

sub fds {
    my ($self) = @_;
    opendir my $d, '/proc/' . $self->child . '/fd' or return -1;
    return scalar grep { !/^\./ } readdir $d;
}

# Starts ring_client beside us: a handle to read its lines from.
sub client_start {
    my ($self, @args) = @_;
    my $pid = open(my $h, '-|') // die "fork: $!";
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        { no warnings 'exec'; exec "$build/t/tools/ring_client", '--socket',
                                 $self->{socket}, @args; }
        POSIX::_exit(127);
    }
    return wantarray ? ($h, $pid) : $h;
}

# Its lines; its status goes to $?.
sub client {
    my $self = shift;
    my $h = $self->client_start(@_);
    chomp(my @lines = <$h>);
    close $h;
    return @lines;
}

# Text of one channel of one choice.
sub text {
    my ($lines, $channel, $choice) = @_;
    $channel //= 'content';
    $choice //= 0;
    return join '', map { JSON::PP->new->allow_nonref->decode($_) }
           map { /^delta $choice $channel .*?text=("(?:[^"\\]|\\.)*")/ }
           @$lines;
}

sub ids {
    my ($lines, $choice) = @_;
    $choice //= 0;
    return join ',', grep { length } map { /^delta $choice \S+ ids=([\d,]*)/ }
           @$lines;
}

# running, queued, pages and used of the engine's page, as a hash.
sub status {
    my $self = shift;
    return map { /(\w+)=(\w+)/g } $self->client('--status');
}

# Until nothing runs, waits or holds a page.
sub until_idle {
    my $self = shift;
    my %s;
    $self->until('idle engine', sub {
        %s = $self->status;
        return $s{running} == 0 && $s{queued} == 0 && $s{used} == 0;
    });
    return %s;
}

sub wait_exit {
    my $self = shift;
    my $pid = delete $self->{pid} // return;
    my $status;
    $self->until('exit of the engine', sub {
        my $r = waitpid $pid, POSIX::WNOHANG;
        $status = $?;
        return $r == $pid;
    });
    return $status;
}

# Lines of the log that are not expected.
sub unexpected {
    my ($self, @allow) = @_;
    my $log = $self->log;
    return grep {
        my $line = $_;
        !($line =~ / \[(?:notice|info|debug)\] \d+: /)
            && !grep { $line =~ $_ } @allow
    } split /\n/, $log;
}

# Asks it to leave; asserts that it does so cleanly, with nothing left over.
sub stop {
    my ($self, %o) = @_;
    kill 'TERM', $self->{pid};
    Test::More::is($self->wait_exit, 0, 'the engine exits with 0');

    my ($all, $done, $error, $cancelled, $lost, $open, $free, $pages) =
        ($self->log =~ /: (\d+ requests: .* pages free)$/m ? $1 : '')
            =~ /\d+/g;
    Test::More::is($done + $error + $cancelled + $lost, $all,
                   "each of $all requests has ended once");
    Test::More::is("$open $free", "0 $pages", 'no request and no page is left');
    Test::More::is(join("\n", $self->unexpected(@{ $o{allow} // [] })), '',
                   'the log is clean');
    Test::More::ok(!-e $self->{socket}, 'the socket is gone');
}

END {
    my $status = $?;
    for (@alive) {
        kill 'KILL', $_->{pid} if $_->{pid};
    }
    $? = $status;
}

1;
