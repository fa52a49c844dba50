# t/tools/gguf writes files that a reader of GGUF understands, with the numbers
# of the model: each type is read back here by its published layout, beside
# the same model as FP32, and the parts of kv_b beside the model's own file.

use strict;
use warnings;

use Cwd ();
use File::Temp qw(tempdir);
use JSON::PP ();
use Test::More;

chdir(Cwd::abs_path(__FILE__) =~ s{/t/[^/]*$}{}r) or die;

my $build = $ENV{BUILD} // 'build';
my $tool = "$build/t/tools/gguf";
my $demo = 'conf/demo/model';
my $tmp = tempdir(CLEANUP => 1);

plan skip_all => "$tool is not built" unless -x $tool;

# How much of a number's size its rounding may be, on average; uniform numbers
# lose step / sqrt(12) of a size of range / sqrt(3).
my %types = (
    0 => ['f32', 1, 4, sub { unpack 'f<', $_[0] }, 0],
    2 => ['q4_0', 32, 18, \&q4_0, 0.08],
    8 => ['q8_0', 32, 34, \&q8_0, 0.006],
    12 => ['q4_k', 256, 144, \&q4_k, 0.08],
    14 => ['q6_k', 256, 210, \&q6_k, 0.02],
    30 => ['bf16', 1, 2, sub { unpack 'f<', "\0\0$_[0]" }, 0.003],
);


sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or die "$path: $!";
    local $/;
    return scalar <$f>;
}

sub half {
    my ($h) = @_;
    my ($sign, $e, $m) = ($h >> 15, $h >> 10 & 31, $h & 1023);
    my $v = $e == 0 ? $m * 2**-24 : (1024 + $m) * 2**($e - 25);
    return $sign ? -$v : $v;
}

sub q8_0 {
    my ($d, @q) = unpack 'v c32', $_[0];
    return map { half($d) * $_ } @q;
}

sub q4_0 {
    my ($d, @b) = unpack 'v C16', $_[0];
    return map { half($d) * ($_ - 8) } (map { $_ & 15 } @b),
        (map { $_ >> 4 } @b);
}

sub q4_k {
    my ($d, $m, @rest) = unpack 'v2 C140', $_[0];
    my @p = splice @rest, 0, 12;
    my @s = ((map { $_ & 63 } @p[0 .. 3]),
             map { ($p[$_ + 8] & 15) | $p[$_] >> 6 << 4 } 0 .. 3);
    my @t = ((map { $_ & 63 } @p[4 .. 7]),
             map { $p[$_ + 8] >> 4 | $p[$_ + 4] >> 6 << 4 } 0 .. 3);
    my @w;
    for my $g (0 .. 7) {
        my @b = @rest[$g >> 1 << 5 .. ($g >> 1 << 5) + 31];
        push @w, map { half($d) * $s[$g] * ($g & 1 ? $_ >> 4 : $_ & 15)
                       - half($m) * $t[$g] } @b;
    }
    return @w;
}

sub q6_k {
    my @b = unpack 'C192 c16 v', $_[0];
    return map {
        my ($n, $l, $q) = ($_ >> 7, $_ & 31, $_ >> 5 & 3);
        my $low = $b[$n * 64 + $l + ($q & 1) * 32] >> ($q >> 1) * 4 & 15;
        my $high = $b[128 + $n * 32 + $l] >> 2 * $q & 3;
        half($b[208]) * $b[192 + ($_ >> 4)] * (($low | $high << 4) - 32);
    } 0 .. 255;
}

# A GGUF file: its values, and of each tensor type, dims and where it is.
sub parse {
    my ($path) = @_;
    my %g = (data => slurp($path));
    my $at = 24;
    my $take = sub {
        my ($form, $n) = @_;
        $at += $n;
        return unpack $form, substr($g{data}, $at - $n, $n);
    };
    my $string = sub { my $n = $take->('Q<', 8); $take->("a$n", $n) };
    my %value = (
        4 => sub { $take->('V', 4) }, 5 => sub { $take->('l<', 4) },
        6 => sub { $take->('f<', 4) }, 7 => sub { $take->('C', 1) },
        8 => $string,
    );
    $value{9} = sub {
        my ($type, $n) = $take->('V Q<', 12);
        return [map { $value{$type}->() } 1 .. $n];
    };

    @g{qw(magic version n_tensors n_values)} = unpack 'a4 V Q< Q<', $g{data};
    for (1 .. $g{n_values}) {
        my $key = $string->();
        $g{values}{$key} = $value{ $take->('V', 4) }->();
    }
    for (1 .. $g{n_tensors}) {
        my $name = $string->();
        my @dims = map { $take->('Q<', 8) } 1 .. $take->('V', 4);
        my ($type, $offset) = $take->('V Q<', 12);
        $g{tensors}{$name} = { type => $type, dims => \@dims,
                               offset => $offset };
    }
    my $start = $at + -$at % 32;
    $_->{offset} += $start for values %{ $g{tensors} };
    return \%g;
}

sub numbers {
    my ($g, $name) = @_;
    my $t = $g->{tensors}{$name};
    my (undef, $n, $bytes, $read) = @{ $types{ $t->{type} } };
    my $all = 1;
    $all *= $_ for @{ $t->{dims} };
    return map { $read->(substr($g->{data}, $t->{offset} + $_ * $bytes,
                                $bytes)) } 0 .. $all / $n - 1;
}

sub make {
    my ($dir, @args) = @_;
    my $file = "$tmp/$args[0].gguf";
    is(system($tool, $dir, $file, @args), 0, "writes $dir as $args[0]");
    return parse($file);
}

# The mean square of the difference as a share of that of @$want, its root.
sub loss {
    my ($got, $want) = @_;
    my ($d, $w) = (0, 1e-30);
    for my $i (0 .. $#$want) {
        $d += ($got->[$i] - $want->[$i])**2;
        $w += $want->[$i]**2;
    }
    return sqrt($d / $w);
}


# Of true weights: all values, and kv_b.
my $config = JSON::PP->new->decode(slurp("$demo/config.json"));
my $g = make($demo, 'f32');
is("$g->{magic} $g->{version}", 'GGUF 3', 'a GGUF file');
my $v = $g->{values};
is($v->{'general.architecture'}, 'deepseek2', 'its architecture');
is($v->{'deepseek2.attention.kv_lora_rank'}, $config->{kv_lora_rank},
   'the latent');
is($v->{'deepseek2.attention.key_length'},
   $config->{kv_lora_rank} + $config->{qk_rope_head_dim}, 'a key');
is(scalar @{ $v->{"tokenizer.ggml.$_"} }, $config->{vocab_size}, "$_ of all")
    for qw(tokens scores token_type);
is($v->{'tokenizer.ggml.tokens'}[3 + 65], '<0x41>', 'bytes are tokens');

my $st = slurp("$demo/model.safetensors");
my $n = unpack 'Q<', $st;
my $head = JSON::PP->new->decode(substr $st, 8, $n);
my $t = $head->{'model.layers.1.self_attn.kv_b_proj.weight'};
my ($nope, $rank) = @$config{qw(qk_nope_head_dim kv_lora_rank)};
my $rows = $nope + $config->{v_head_dim};
my @kv_b = map { unpack 'f<', "\0\0$_" } unpack '(a2)*',
    substr $st, 8 + $n + $t->{data_offsets}[0],
    $t->{data_offsets}[1] - $t->{data_offsets}[0];
is($t->{dtype}, 'BF16', 'the demo model is BF16');
my (@k, @v);
for my $h (0 .. $config->{num_attention_heads} - 1) {
    my $at = $h * $rows * $rank;
    for my $col (0 .. $rank - 1) {
        push @k, map { $kv_b[$at + $_ * $rank + $col] } 0 .. $nope - 1;
    }
    push @v, @kv_b[$at + $nope * $rank .. $at + $rows * $rank - 1];
}
is_deeply([numbers($g, 'blk.1.attn_k_b.weight')], \@k, 'keys are turned');
is_deeply([numbers($g, 'blk.1.attn_v_b.weight')], \@v, 'values are not');

# Of random ones: every type, and in a place of its own.
my %small = (%$config, hidden_size => 256, num_hidden_layers => 2,
             vocab_size => 300, intermediate_size => 96,
             n_routed_experts => 8);
mkdir "$tmp/small" or die;
open my $f, '>', "$tmp/small/config.json" or die;
print $f JSON::PP->new->encode(\%small);
close $f or die;

my $truth = make("$tmp/small", 'f32', 7);
my %names = map { $_ => [numbers($truth, $_)] } keys %{ $truth->{tensors} };
my %seen;

for my $quant (qw(bf16 q8_0 q4_k)) {
    my $file = make("$tmp/small", $quant, 7);
    is_deeply([sort keys %{ $file->{tensors} }], [sort keys %names],
              "$quant has the same tensors");
    my @bad;
    for my $name (sort keys %names) {
        my ($type, undef, undef, undef, $most) =
            @{ $types{ $file->{tensors}{$name}{type} } };
        my $loss = loss([numbers($file, $name)], $names{$name});
        push @bad, "$name ($type): $loss" if $loss > $most;
        $seen{"$quant $type"}++;
    }
    is_deeply(\@bad, [], "$quant has the same numbers, rounded");
}

is(join(', ', sort keys %seen), 'bf16 bf16, bf16 f32, q4_k f32, q4_k q4_0, '
   . 'q4_k q4_k, q4_k q6_k, q8_0 f32, q8_0 q8_0', 'with every type there is');

done_testing();
