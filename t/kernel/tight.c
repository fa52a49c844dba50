/*
 * tight.c - BF16 weights in 12 bits: every element has the bits that BF16 has,
 * whatever it is, or the rows are refused; and products with them have the bits
 * of products with BF16 weights, on every kind of machine.
 */
#include "kernel.h"

#include "engine/cpu/cpu.h"

#define ROWS_MAX    40
#define IN_MAX      1032        /* more than four blocks, and half a step */
#define OUT_MAX     99

static const char *const backends[] = {
    "cpu:ref", "cpu:avx2", "cpu:avx512", "cpu:avx512vnni", "cpu:avx512bf16",
    "cpu:amx"
};

static const uint32_t n_outs[] = { 1, 16, 17, 64, OUT_MAX };
static const uint32_t n_ins[] = { 1, 7, 8, 9, 33, 64, 250, 264, 513, IN_MAX };
static const uint32_t wide_ins[] = { 512, 513, IN_MAX };
static const uint32_t full_ins[] = { 64, 512, 520, 1032 };

static float w[OUT_MAX * IN_MAX], x[ROWS_MAX * IN_MAX];
static float want[ROWS_MAX * OUT_MAX], got[ROWS_MAX * OUT_MAX];


static float
of_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, 4);

    return f;
}


/* Near enough a normal distribution. */
static float
normal(void)
{
    float sum = 0;

    for (int i = 0; i < 6; i++) {
        sum += uniform();
    }

    return sum;
}


enum hard { HARD_NORMAL, HARD_ZEROS, HARD_SIGNS, HARD_SMALL, HARD_ODD,
            HARD_EDGES, HARD_N };

static const char *const hard_names[HARD_N] = {
    "normal", "zeros", "zeros of both signs", "subnormals", "inf and NaN",
    "exceptions at the edges"
};


/* One of n rows of weights, whose tiles have at most 9 exceptions. */
static void
fill_row(float *to, uint32_t row, uint32_t n_in, enum hard hard)
{
    static const uint32_t odd[] = {
        0x7f800000, 0xff800000, 0x7fc10000, 0xffa50000, 0x7f7f0000,
        0x00010000, 0x80800000, 0x7f8f0001
    };

    for (uint32_t i = 0; i < n_in; i++) {
        uint32_t at = i * 16 + row % 16;

        switch (hard) {
        case HARD_ZEROS: to[i] = 0; break;
        case HARD_SIGNS: to[i] = i % 2 ? -0.0f : row % 2 ? 0 : normal(); break;
        case HARD_SMALL: to[i] = normal() * 1e-39f; break;
        default:         to[i] = normal(); break;
        }

        if (hard == HARD_ODD && at % 131 == 5 && at / 131 < 8) {
            to[i] = of_bits(odd[at / 131]);
        }

        /* First, beside each other, at the ends of a step and of a block. */
        if (hard == HARD_EDGES && (at < 2 || at == 127 || at == 128
                                   || at == 256 * 16 - 1 || at == 256 * 16
                                   || at == 272 * 16
                                   || i + 1 == n_in) && row % 16 < 2)
        {
            to[i] = 1e-30f * (1 + (float) row);
        }
    }
}


static void
fill_hard(uint32_t n_out, uint32_t n_in, enum hard hard)
{
    for (uint32_t row = 0; row < n_out; row++) {
        fill_row(w + (size_t) row * n_in, row, n_in, hard);
    }
}


static void
check_elements(struct backend *b, uint32_t n_out, uint32_t n_in,
               enum hard hard)
{
    struct weight tight = weight_make(b, DTYPE_TIGHT, 1, n_out, n_in, w);

    for (uint32_t row = 0; row < n_out; row++) {
        const uint8_t *tile = (const uint8_t *) tight.data
                              + tight_bytes(n_in) * (row / 16);

        for (uint32_t col = 0; col < n_in; col++) {
            uint16_t is = tight_get(tile, n_in, row % 16, col);
            uint16_t was = bf16_from_f32(w[(size_t) row * n_in + col]);

            if (is != was) {
                fail_msg("%s, %u of %u: (%u, %u): expected %04x, got %04x",
                         hard_names[hard], n_out, n_in, row, col, was, is);
            }
        }
    }

    weight_drop(b, &tight);
}


static void
test_elements(void **state)
{
    struct backend *b = open_backend("cpu:ref", 1);

    (void) state;

    for (enum hard hard = 0; hard < HARD_N; hard++) {
        for (size_t o = 0; o < BASE_COUNT(n_outs); o++) {
            for (size_t i = 0; i < BASE_COUNT(n_ins); i++) {
                fill_hard(n_outs[o], n_ins[i], hard);
                check_elements(b, n_outs[o], n_ins[i], hard);
            }
        }
    }

    close_backend(b);
}


/* A tile of eight frequent upper bytes of each sign, and n others. */
static void
fill_exceptions(uint32_t n_in, uint32_t n)
{
    for (uint32_t i = 0; i < 16 * n_in; i++) {
        w[i] = of_bits((0x3000 + i % 8 * 0x100 + i % 256) << 16
                       | (i / 8 % 2) << 31);
    }

    for (uint32_t i = 0; i < n; i++) {
        w[16 * n_in - 1 - i * 3] = of_bits((0x4000 + i % 32 * 0x100) << 16);
    }
}


/* A head holds 11 exceptions, and 16 more with every 512 columns. */
static void
test_full_head(void **state)
{
    struct backend *b = open_backend("cpu:ref", 1);

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(full_ins); i++) {
        uint32_t      n_in = full_ins[i], most = 11 + n_in / 512 * 16;
        struct weight to = { NULL, DTYPE_TIGHT, 1, 16, n_in };

        to.data = b->ops->alloc(b, b->ops->weight_bytes(&to));
        assert_non_null(to.data);

        for (uint32_t n = most - 1; n <= most + 1; n++) {
            fill_exceptions(n_in, n);
            assert_int_equal(b->ops->weight_put(b, &to, 0, 0, 16, w),
                             n <= most ? 0 : -1);

            if (n <= most) {
                check_elements(b, 16, n_in, HARD_NORMAL);
            }
        }

        weight_drop(b, &to);
    }

    close_backend(b);
}


static void
test_refused(void **state)
{
    struct backend *b = open_backend("cpu:ref", 1);
    struct weight   to = { NULL, DTYPE_TIGHT, 1, 32, 513 };

    (void) state;
    to.data = b->ops->alloc(b, b->ops->weight_bytes(&to));
    assert_non_null(to.data);
    fill_hard(32, 513, HARD_NORMAL);
    assert_int_equal(b->ops->weight_put(b, &to, 0, 0, 32, w), 0);

    /* Only the second tile, of all exponents. */
    for (uint32_t i = 16 * 513; i < 32 * 513; i++) {
        w[i] = of_bits(i * 0x9e3779b9u);
    }

    assert_int_equal(b->ops->weight_put(b, &to, 0, 0, 32, w), -1);
    assert_int_equal(b->ops->weight_put(b, &to, 0, 0, 16, w), 0);
    assert_int_equal(b->ops->weight_put(b, &to, 0, 16, 16, w + 16 * 513), -1);
    weight_drop(b, &to);
    close_backend(b);
}


static void
check_products(struct backend *b, uint32_t n_out, uint32_t n_in,
               enum hard hard)
{
    struct weight tight = weight_make(b, DTYPE_TIGHT, 1, n_out, n_in, w);
    struct weight plain = weight_make(b, DTYPE_BF16, 1, n_out, n_in, w);
    struct tensor in = { x, n_in };
    char          what[128];

    for (uint32_t rows = 1; rows <= ROWS_MAX; rows++) {
        for (int add = 0; add < 2; add++) {
            size_t n = (size_t) rows * n_out;

            /* -0 is what adding +0 would change. */
            for (size_t i = 0; i < n; i++) {
                want[i] = got[i] = i % 3 ? uniform() : -0.0f;
            }

            snprintf(what, sizeof(what), "%s: %s, %u of %u, %u rows%s",
                     b->kernels, hard_names[hard], n_out, n_in, rows,
                     add ? " added" : "");
            b->ops->linear(b, (struct tensor) { want, n_out }, in, &plain,
                           rows, add);
            b->ops->linear(b, (struct tensor) { got, n_out }, in, &tight,
                           rows, add);
            compare_bits(what, got, want, n);
        }

        rows += rows > 14 ? 6 : 0;
    }

    weight_drop(b, &tight);
    weight_drop(b, &plain);
}


static void
test_products(void **state)
{
    struct backend *b = open_backend(*state, 2);

    if (b == NULL) {
        return;
    }

    fill(x, ROWS_MAX * IN_MAX, KIND_OUTLIERS);

    for (size_t o = 0; o < BASE_COUNT(n_outs); o++) {
        for (size_t i = 0; i < BASE_COUNT(n_ins); i++) {
            enum hard hard = (enum hard) ((o + i) % HARD_N);

            fill_hard(n_outs[o], n_ins[i], hard);
            check_products(b, n_outs[o], n_ins[i], hard);
        }
    }

    /* Four tiles by few rows, which are made BF16 in registers. */
    for (size_t i = 0; i < BASE_COUNT(wide_ins); i++) {
        for (enum hard hard = 0; hard < HARD_N; hard++) {
            fill_hard(64, wide_ins[i], hard);
            check_products(b, 64, wide_ins[i], hard);
        }
    }

    for (size_t i = 0; i < BASE_COUNT(full_ins); i++) {
        fill_hard(64, full_ins[i], HARD_NORMAL);
        fill_exceptions(full_ins[i], 11 + full_ins[i] / 512 * 16);
        check_products(b, 64, full_ins[i], HARD_NORMAL);
    }

    close_backend(b);
}


int
main(void)
{
    struct CMUnitTest tests[3 + BASE_COUNT(backends)] = {
        cmocka_unit_test(test_elements), cmocka_unit_test(test_full_head),
        cmocka_unit_test(test_refused)
    };

    for (size_t i = 0; i < BASE_COUNT(backends); i++) {
        tests[3 + i] = (struct CMUnitTest) {
            backends[i], test_products, NULL, NULL,
            (void *) (uintptr_t) backends[i]
        };
    }

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
