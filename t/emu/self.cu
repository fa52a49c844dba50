/*
 * self.cu - what the emulation is for: it must find the mistakes that kernels
 * have.  Each is made on purpose, in a process of its own, beside the same
 * kernel without it.  Of kernels that overlap, see early.cu.
 */
#include "caught.h"


/* Every thread reads what another has written. */
static int
turn_around(bool with_barrier, bool twice)
{
    int out[N], sum = 0;

    emu_run(1, N, N * sizeof(int), false, [&] {
        volatile int *room = (int *) (void *) hw_shared();
        unsigned      i = threadIdx.x;

        room[i] = (int) i;

        if (with_barrier) {
            __syncthreads();
        }

        out[i] = room[N - 1 - i];

        if (twice) {
            /* What was read is overwritten: that wants a barrier, too. */
            if (with_barrier) {
                __syncthreads();
            }

            room[i] = 1000;
        }
    });

    for (int i = 0; i < N; i++) {
        sum += out[i] != N - 1 - i;
    }

    return sum;
}


static void
test_barrier(void **)
{
    assert_false(is_caught([] { return turn_around(true, false); }));
    assert_false(is_caught([] { return turn_around(true, true); }));
    assert_true(is_caught([] { return turn_around(false, false); }));
}


/* A barrier before reading, none before writing again. */
static void
test_second_barrier(void **)
{
    auto rounds = [](bool right) {
        int bad = 0;

        emu_run(1, N, sizeof(int), false, [&] {
            volatile int *room = (int *) (void *) hw_shared();

            for (int round = 0; round < 3; round++) {
                if (threadIdx.x == 0) {
                    *room = round;
                }

                __syncthreads();
                bad += *room != round;

                if (right) {
                    __syncthreads();
                }
            }
        });

        return bad;
    };

    assert_false(is_caught([&] { return rounds(true); }));
    assert_true(is_caught([&] { return rounds(false); }));
}


static void
test_shared_bounds(void **)
{
    auto touch = [](size_t i) {
        emu_run(1, 1, 64, false, [&] {
            volatile unsigned char *p = hw_shared();

            p[i] = 1;
        });

        return 0;
    };

    assert_false(is_caught([&] { return touch(63); }));
    assert_true(is_caught([&] { return touch(64); }));
}


/* At the guard, in the slack before it (found by free), and before. */
static void
test_device_bounds(void **)
{
    auto touch = [](long at) {
        void *p;

        cudaMalloc(&p, 1000);
        emu_run(1, 1, 0, false, [&] {
            ((volatile char *) p)[at] = 1;
        });

        return cudaFree(p) == cudaSuccess ? 0 : 1;
    };

    assert_false(is_caught([&] { return touch(0) + touch(999); }));
    assert_true(is_caught([&] { return touch(1000); }));
    assert_true(is_caught([&] { return touch(1024); }));
    assert_true(is_caught([&] { return touch(-4096); }));
}


static void
test_not_written(void **)
{
    auto read = [](bool write) {
        float *p, x = 0;

        cudaMalloc((void **) &p, sizeof(float));
        emu_run(1, 1, sizeof(float), false, [&] {
            float *room = (float *) (void *) hw_shared();

            if (write) {
                *room = *p = 1;
            }

            x = *room + *p;
        });
        cudaFree(p);

        return x == 2 ? 0 : 1;
    };

    assert_false(is_caught([&] { return read(true); }));
    assert_true(is_caught([&] { return read(false); }));
}


/* A copy has not arrived before it was waited for. */
static void
test_copy(void **)
{
    static const uint4 from = { 1, 2, 3, 4 };
    auto               copy = [](bool wait) {
        unsigned x = 0;

        emu_run(1, 1, 16, false, [&] {
            uint4 *room = (uint4 *) (void *) hw_shared();

            hw_copy16(room, &from, true);
            hw_copy_commit();

            if (wait) {
                hw_copy_wait<0>();
            }

            x = room->w;
            hw_copy_wait<0>();
        });

        return x == 4 ? 0 : 1;
    };

    assert_false(is_caught([&] { return copy(true); }));
    assert_true(is_caught([&] { return copy(false); }));
}


/* What was there is not, once a copy is under way: neither kind's. */
static void
test_copy_over(void **)
{
    static const uint4 from = { 1, 2, 3, 4 };
    auto               copy = [](bool over, bool bulk) {
        unsigned x = 0;

        emu_run(1, 1, 32, false, [&] {
            uint4    *room = (uint4 *) (void *) hw_shared();
            uint64_t *b = (uint64_t *) (void *) (hw_shared() + 16);

            room->w = 5;
            x = over ? 0 : room->w;
            hw_barrier_init(b, 1);
            hw_barrier_expect(b, 16);

            if (bulk) {
                hw_bulk_copy(room, &from, 16, b);
            } else {
                hw_copy16(room, &from, true);
            }

            x = over ? room->w : x;
            hw_copy_commit();
            hw_copy_wait<0>();

            if (bulk) {
                hw_barrier_wait(b, 0);
            }
        });

        return x == 5 ? 0 : 1;
    };

    for (bool bulk : { false, true }) {
        assert_false(is_caught([&] { return copy(false, bulk); }));
        assert_true(is_caught([&] { return copy(true, bulk); }));
    }
}


/* A stream's copies are made when it is waited for, also by an event, and
 * before its own kernels: not before another's, which is waited for alone. */
static void
test_stream(void **)
{
    enum { NOT, ITSELF, WAITED, EVENT };
    auto copy = [](int how) {
        cudaStream_t s, other;
        cudaEvent_t  e;
        int          from = 7, to = 0, seen = 0;

        cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
        cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyHostToDevice, s);
        cudaEventRecord(e, s);

        if (how == WAITED) {
            cudaStreamSynchronize(s);

        } else if (how == EVENT) {
            cudaEventSynchronize(e);
        }

        cudaLaunchConfig_t c = {};

        c.stream = how == ITSELF ? s : other;
        emu_launch(&c, NULL, [&] { seen = to; });
        cudaStreamSynchronize(c.stream);

        return seen == 7 ? 0 : 1;
    };

    assert_false(is_caught([&] { return copy(ITSELF); }));
    assert_false(is_caught([&] { return copy(WAITED); }));
    assert_false(is_caught([&] { return copy(EVENT); }));
    assert_true(is_caught([&] { return copy(NOT); }));
}


/* Two streams that nobody has put in an order have several. */
static void
test_streams(void **)
{
    auto copy = [](bool in_order) {
        cudaStream_t s, other;
        int          one = 1, two = 2, to = 0;

        cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
        cudaMemcpyAsync(&to, &one, sizeof(to), cudaMemcpyHostToDevice, s);

        if (in_order) {
            cudaStreamSynchronize(s);
        }

        cudaMemcpyAsync(&to, &two, sizeof(to), cudaMemcpyHostToDevice, other);
        cudaDeviceSynchronize();

        return to == 2 ? 0 : 1;
    };

    assert_false(is_caught([&] { return copy(true); }));
    assert_true(is_caught([&] { return copy(false); }));
}


/* The last block to be done is not that with the highest number. */
static void
test_ticket(void **)
{
    auto sum = [](bool ticket) {
        unsigned counter = 0, parts[8] = {}, all = 0;

        emu_run(8, 1, 0, false, [&] {
            parts[blockIdx.x] = 1;

            if ((ticket ? atomicAdd(&counter, 1) : blockIdx.x) == 7) {
                for (unsigned p : parts) {
                    all += p;
                }
            }
        });

        return all == 8 ? 0 : 1;
    };

    assert_false(is_caught([&] { return sum(true); }));
    assert_true(is_caught([&] { return sum(false); }));
}


/* More shared memory than every kernel has wants to be asked for. */
static void
test_shared_allowed(void **)
{
    auto launch = [](int allowed) {
        static const char  kernel = 0;
        cudaLaunchConfig_t c = {};

        c.dynamicSmemBytes = 100 * 1024;

        if (allowed != 0) {
            emu_allow_shared(&kernel, allowed);
        }

        emu_launch(&c, &kernel, [] {});

        return 0;
    };

    assert_false(is_caught([&] { return launch(100 * 1024); }));
    assert_true(is_caught([&] { return launch(0); }));
    assert_true(is_caught([&] { return launch(99 * 1024); }));
}


/* What is right in all orders of turns here, and not on a device: a warp's
 * lanes one after the other, and one that arrives for all of them. */
static void
test_race(void **)
{
    enum { NOTHING, SHUFFLE, WARP, BLOCK };
    auto pass = [](int how) {
        int bad = 0;

        emu_run(1, HW_WARP, HW_WARP * 4, false, [&] {
            volatile uint32_t *room = (uint32_t *) (void *) hw_shared();

            room[hw_lane()] = hw_lane();

            if (how == SHUFFLE) {
                hw_ballot(1);

            } else if (how == WARP) {
                __syncwarp();

            } else if (how == BLOCK) {
                __syncthreads();
            }

            bad += how != NOTHING && room[hw_lane() ^ 1] != (hw_lane() ^ 1);

            if (how == NOTHING && hw_lane() == 0) {
                room[0] += room[1];
            }
        });

        return bad;
    };
    auto free_stage = [](bool warp) {
        static const uint4 from[2] = {};

        emu_run(1, 2 * HW_WARP, 64, false, [&] {
            uint32_t *room = (uint32_t *) (void *) hw_shared();
            uint64_t *b = (uint64_t *) (void *) (hw_shared() + 32);

            if (threadIdx.x == 0) {
                hw_barrier_init(b, 1);
                hw_barrier_init(b + 1, 1);
            }

            __syncthreads();

            if (threadIdx.x < HW_WARP) {
                uint32_t x = *(volatile uint32_t *) &room[hw_lane() % 8];

                (void) x;

                if (warp) {
                    __syncwarp();
                }

                if (hw_lane() == 0) {
                    hw_barrier_arrive(b);
                }

            } else if (hw_lane() == 0) {
                hw_barrier_wait(b, 0);
                hw_barrier_expect(b + 1, 32);
                hw_bulk_copy(room, from, 32, b + 1);
                hw_barrier_wait(b + 1, 0);
            }
        });

        return 0;
    };

    for (int how : { WARP, BLOCK }) {
        assert_false(is_caught([=] { return pass(how); }));
    }

    for (int how : { NOTHING, SHUFFLE }) {
        assert_true(!IS_SEEN || is_caught([=] { return pass(how); }));
    }

    assert_false(is_caught([&] { return free_stage(true); }));
    assert_true(!IS_SEEN || is_caught([&] { return free_stage(false); }));
}


/* Not all threads come to a barrier, or to their warp. */
static void
test_stuck(void **)
{
    auto some = [](unsigned n, bool warp) {
        emu_run(1, N, 0, false, [&] {
            if (threadIdx.x < n) {
                warp ? __syncwarp() : __syncthreads();
            }
        });

        return 0;
    };

    assert_false(is_caught([&] { return some(N, false); }));
    assert_false(is_caught([&] { return some(32, true); }));
    assert_true(is_caught([&] { return some(32, false); }));
    assert_true(is_caught([&] { return some(33, true); }));
}


/* mma and ldmatrix against their definition. */
static void
test_mma(void **)
{
    static uint16_t a[16][16], b[8][16];        /* b by columns */
    float           want[16][8] = {}, got[16][8] = {};

    for (int i = 0; i < 16 * 16; i++) {
        a[i / 16][i % 16] = (uint16_t) hw_bf16x2((float) (i * 7 % 23), 0);
    }

    for (int i = 0; i < 8 * 16; i++) {
        b[i / 16][i % 16] = (uint16_t) hw_bf16x2((float) (i * 5 % 19), 0);
    }

    for (int i = 0; i < 16 * 8 * 16; i++) {
        int r = i / 128, col = i / 16 % 8, k = i % 16;

        want[r][col] += (float) (((r * 16 + k) * 7 % 23)
                                 * ((col * 16 + k) * 5 % 19));
    }

    emu_run(1, HW_WARP, sizeof(a) + 2 * sizeof(b), false, [&] {
        unsigned char *room = hw_shared();
        unsigned       l = hw_lane();
        float          d[4] = {};

        if (l == 0) {
            memcpy(room, a, sizeof(a));
            memcpy(room + sizeof(a), b, sizeof(b));
            memcpy(room + sizeof(a) + sizeof(b), b, sizeof(b));
        }

        __syncwarp();

        uint4 fa = hw_ldmatrix(room + l % 16 * 32 + l / 16 * 16);
        uint4 fb = hw_ldmatrix(room + sizeof(a) + l % 8 * 32
                               + l / 8 % 2 * 16 + l / 16 * sizeof(b));

        hw_mma(d, fa, make_uint2(fb.x, fb.y));

        for (unsigned i = 0; i < 4; i++) {
            got[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = d[i];
        }
    });

    assert_memory_equal(got, want, sizeof(got));
}


/* Bytes arrive at their barrier: not before it was waited for. */
static void
test_bulk(void **)
{
    static const uint4 from[2] = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } };
    auto               copy = [](bool wait, unsigned n_announced) {
        unsigned x = 0;

        emu_run(1, N, 64, false, [&] {
            uint4    *room = (uint4 *) (void *) hw_shared();
            uint64_t *b = (uint64_t *) (void *) (hw_shared() + 32);

            if (threadIdx.x == 0) {
                hw_barrier_init(b, 1);
            }

            __syncthreads();

            if (threadIdx.x == 5) {
                hw_barrier_expect(b, n_announced);
                hw_bulk_copy(room, from, 32, b);
            }

            if (wait) {
                hw_barrier_wait(b, 0);
            }

            x = room[1].w;
            __syncthreads();
            hw_barrier_wait(b, 0);
        });

        return x == 8 ? 0 : 1;
    };

    assert_false(is_caught([&] { return copy(true, 32); }));
    assert_true(is_caught([&] { return copy(false, 32); }));
    assert_true(is_caught([&] { return copy(true, 48); }));
}


enum group_fault {
    NO_FAULT, NO_FENCE, NO_WAIT, EARLY, NOT_SWIZZLED, WRONG_STRIDE, NO_SWIZZLE,
    SUM_STORED, NOT_FENCED, ONE_FENCED
};

/* A warpgroup's product of small whole numbers: how many sums are wrong. */
static int
group_product(enum group_fault fault)
{
    static const unsigned n_bytes = 128 * 128;
    int                   bad = 0;

    emu_run(1, 128, n_bytes, false, [&] {
        unsigned char *room = hw_shared();
        unsigned       t = threadIdx.x, l = hw_lane(), wrong = 0;
        uint64_t       b = (uint64_t) (hw_shared_address(room) >> 4)
                           | (uint64_t) (fault == WRONG_STRIDE ? 32 : 64) << 32
                           | (uint64_t) (fault == NO_SWIZZLE ? 0 : 1) << 62;
        uint32_t       a[4];
        float          d[64];

        for (unsigned k = 0; k < 64; k++) {
            unsigned piece = k / 8 ^ (fault == NOT_SWIZZLED ? 0 : t % 8);

            ((uint16_t *) (void *) (room + t * 128 + piece * 16))[k % 8] =
                (uint16_t) hw_bf16x2((float) ((t * 5 + k * 3) % 7), 0);
        }

        for (unsigned e = 0; e < 8; e += 2) {
            unsigned row = t / 32 * 16 + l / 4 + e / 2 % 2 * 8;
            unsigned k = l % 4 * 2 + e / 4 * 8;

            a[e / 2] = hw_bf16x2((float) ((row + k) % 5),
                                 (float) ((row + k + 1) % 5));
        }

        if (fault != NOT_FENCED && fault != ONE_FENCED) {
            hw_shared_fence();
        }

        __syncthreads();

        /* A thread's fence is for what it has stored itself. */
        if (fault == ONE_FENCED && t == 0) {
            hw_shared_fence();
        }

        if (fault != NO_FENCE) {
            hw_group_fence();
        }

        uint4 regs = make_uint4(a[0], a[1], a[2], a[3]);

        /* Columns 16 .. 31. */
        hw_group_mma(d, regs, b + 2, false);
        hw_group_commit();

        if (fault == EARLY) {
            regs.x = 0;
        }

        if (fault == SUM_STORED) {
            d[3] = 0;
        }

        if (fault != NO_WAIT) {
            hw_group_wait<0>();
        }

        for (unsigned e = 0; e < 64; e++) {
            unsigned row = t / 32 * 16 + l / 4 + e / 2 % 2 * 8;
            unsigned col = e / 4 * 8 + l % 4 * 2 + e % 2, want = 0;

            for (unsigned k = 0; k < 16; k++) {
                want += (row + k) % 5 * ((col * 5 + (k + 16) * 3) % 7);
            }

            wrong += d[e] != (float) want;
        }

        bad += wrong != 0;
    });

    return bad;
}


static void
test_group(void **)
{
    static const enum group_fault faults[] = {
        NO_FENCE, NO_WAIT, EARLY, NOT_SWIZZLED, WRONG_STRIDE, NO_SWIZZLE,
        SUM_STORED
    };

    assert_false(is_caught([] { return group_product(NO_FAULT); }));

    for (enum group_fault f : { NOT_FENCED, ONE_FENCED }) {
        assert_true(!IS_SEEN || is_caught([=] { return group_product(f); }));
    }

    for (enum group_fault f : faults) {
        assert_true(is_caught([=] { return group_product(f); }));
    }
}


/* Every number of e4m3 is rounded to itself, what is between to the nearer, or
 * to the even one. */
static void
test_fp8(void **)
{
    float was = 0;

    for (uint32_t i = 1; i < 0x7f; i++) {
        float v = (i >> 3) == 0 ? ldexpf((float) i, -9)
                  : ldexpf((float) (8 + i % 8), (int) (i >> 3) - 10);

        assert_int_equal(hw_fp8x4(0, -v, v, 0), (i | 0x80) << 8 | i << 16);
        assert_int_equal(hw_fp8x4((was + v) / 2, 0, 0, 0), i - i % 2);
        assert_int_equal(hw_fp8x4(was + (v - was) * 0.51f, 0, 0, 0), i);
        was = v;
    }

    assert_int_equal(hw_fp8x4(1e9f, -500, NAN, 449), 0x7e7ffe7e);
}


/* Of e4m3, columns 32 .. 63 of whole numbers. */
static void
test_group_fp8(void **)
{
    unsigned n_wrong = 0;

    emu_run(1, 128, 128 * 128, false, [&] {
        unsigned char *room = hw_shared();
        unsigned       t = threadIdx.x, l = hw_lane();
        uint64_t       b = (uint64_t) (hw_shared_address(room) >> 4)
                           | (uint64_t) 64 << 32 | (uint64_t) 1 << 62;
        uint32_t       a[4] = {};
        float          d[64];

        for (unsigned k = 0; k < 128; k++) {
            room[t * 128 + (k / 16 ^ t % 8) * 16 + k % 16] =
                (unsigned char) hw_fp8x4((float) ((t * 5 + k * 3) % 7), 0, 0,
                                         0);
        }

        for (unsigned e = 0; e < 16; e++) {
            unsigned row = t / 32 * 16 + l / 4 + e / 4 % 2 * 8;
            unsigned k = l % 4 * 4 + e % 4 + e / 8 * 16;

            a[e / 4] |= hw_fp8x4((float) ((row + k) % 5), 0, 0, 0)
                        << e % 4 * 8;
        }

        /* It is read until the wait is over. */
        uint4 rows = make_uint4(a[0], a[1], a[2], a[3]);

        hw_shared_fence();
        __syncthreads();
        hw_group_fence();
        hw_group_mma8(d, rows, b + 2, false);
        hw_group_commit();
        hw_group_wait<0>();

        for (unsigned e = 0; e < 64; e++) {
            unsigned row = t / 32 * 16 + l / 4 + e / 2 % 2 * 8;
            unsigned col = e / 4 * 8 + l % 4 * 2 + e % 2, want = 0;

            for (unsigned k = 0; k < 32; k++) {
                want += (row + k) % 5 * ((col * 5 + (k + 32) * 3) % 7);
            }

            n_wrong += d[e] != (float) want;
        }
    });

    assert_int_equal(n_wrong, 0);
}


/* Operands in shared memory: A (64, 16), B turned, of 16 rows of 2 times 64
 * columns, of which A from registers gets 64; and the product of A with itself.
 * How many sums are wrong. */
static unsigned
shared_product(unsigned lbo)
{
    unsigned n_wrong = 0;

    emu_run(1, 128, 8192 + 4096, false, [&] {
        unsigned char *room = hw_shared();
        unsigned       t = threadIdx.x, l = hw_lane();
        uint64_t       way = (uint64_t) 64 << 32 | (uint64_t) 1 << 62;
        uint64_t       a = way | (hw_shared_address(room) >> 4);
        uint64_t       b = way | (hw_shared_address(room + 8192) >> 4)
                           | (uint64_t) (lbo >> 4) << 16;
        float          d[64], e[32], f[32];
        uint32_t       rows[4];
        auto put = [&](unsigned at, unsigned row, unsigned col, unsigned v) {
            ((uint16_t *) (void *) (room + at + row * 128
                                    + (col / 8 ^ row % 8) * 16))[col % 8] =
                (uint16_t) hw_bf16x2((float) v, 0);
        };

        for (unsigned i = t; i < 64 * 64; i += 128) {
            put(0, i / 64, i % 64, (i / 64 + i % 64) % 5);
        }

        for (unsigned i = t; i < 16 * 128; i += 128) {
            put(8192 + i % 128 / 64 * 2048, i / 128, i % 64,
                (i / 128 * 3 + i % 128) % 7);
        }

        for (unsigned i = 0; i < 4; i++) {
            unsigned sum = t / 32 * 16 + l / 4 + i % 2 * 8 + l % 4 * 2
                           + i / 2 * 8;

            rows[i] = hw_bf16x2((float) (sum % 5), (float) ((sum + 1) % 5));
        }

        /* It is read until the wait is over. */
        uint4 regs = make_uint4(rows[0], rows[1], rows[2], rows[3]);

        hw_shared_fence();
        __syncthreads();
        hw_group_fence();
        hw_group_mma_turned(d, a + 2, b, false);
        hw_group_mma_turned(f, regs, b, false);
        hw_group_mma_shared(e, a, a + 2, false);
        hw_group_commit();
        hw_group_wait<0>();

        for (unsigned i = 0; i < 64; i++) {
            unsigned row = t / 32 * 16 + l / 4 + i / 2 % 2 * 8;
            unsigned col = i / 4 * 8 + l % 4 * 2 + i % 2;
            unsigned want = 0, less = 0, same = 0;

            for (unsigned k = 0; k < 16; k++) {
                want += (row + k + 16) % 5 * ((k * 3 + col) % 7);
                less += (row + k) % 5 * ((k * 3 + col) % 7);
                same += (row + k) % 5 * ((col + k + 16) % 5);
            }

            n_wrong += d[i] != (float) want;
            n_wrong += i < 32 && e[i] != (float) same;
            n_wrong += i < 32 && f[i] != (float) less;
        }
    });

    return n_wrong;
}


static void
test_group_shared(void **)
{
    assert_int_equal(shared_product(2048), 0);
    assert_true(is_caught([] { return shared_product(1024) != 0; }));
    assert_true(is_caught([] { return shared_product(512) != 0; }));
}


/* What was put is there when it was waited for; not before, and what is changed
 * meanwhile is seen; and what was not fenced is not. */
static void
test_bulk_put(void **)
{
    auto put = [](bool wait, bool change, bool fence = true) {
        static uint4 to[2];
        unsigned     x = 0;

        memset(to, 0, sizeof(to));
        emu_run(1, N, 32, false, [&] {
            unsigned *room = (unsigned *) (void *) hw_shared();

            if (threadIdx.x < 8) {
                room[threadIdx.x] = threadIdx.x;
            }

            if (fence) {
                hw_shared_fence();
            }

            hw_sync_first<N>();

            if (threadIdx.x == 0) {
                hw_bulk_put(to, room, 32);

                if (change) {
                    room[7] = 1;
                }

                if (wait) {
                    hw_bulk_put_wait();
                }

                x = to[1].w;
            }
        });

        return x == 7 ? 0 : 1;
    };

    assert_false(is_caught([&] { return put(true, false); }));
    assert_true(is_caught([&] { return put(false, false); }));
    assert_true(is_caught([&] { return put(true, true); }));
    assert_true(!IS_SEEN || is_caught([&] { return put(true, false, false); }));
}


enum cluster_fault {
    CLUSTER_RIGHT, OWN_ALONE, NOT_MADE, ENDS, TO_ITSELF, FEW_BYTES, NO_ROOM
};

/*
 * Two blocks through one stage, each copying half of what both are to read: its
 * first thread to both, the others wait, read and say so to both.  How many
 * words were wrong.  The second block is slower: it has another warp read.
 */
static unsigned
cluster_rounds(enum cluster_fault fault)
{
    static uint4 from[4][2];
    unsigned     n_wrong = 0, n_rounds = 4;

    for (unsigned i = 0; i < 8; i++) {
        from[i / 2][i % 2].w = i + 1;
    }

    emu_run(2, 64, 64, false, [&] {
        uint4    *stage = (uint4 *) (void *) hw_shared();
        uint64_t *full = (uint64_t *) (void *) (hw_shared() + 32);
        uint64_t *empty = full + 1;
        unsigned  rank = hw_cluster_rank();

        if (threadIdx.x == 0) {
            hw_barrier_init(full, 1);
            hw_barrier_init(empty, fault == OWN_ALONE ? 1 : 2);
        }

        if (fault == NOT_MADE) {
            __syncthreads();
        } else {
            hw_cluster_sync();
        }

        for (unsigned i = 0; i < n_rounds; i++) {
            if (threadIdx.x == 0) {
                hw_barrier_wait(empty, i % 2 ^ 1);
                hw_barrier_expect(full, fault == FEW_BYTES ? 16 : 32);
                hw_bulk_copy_all(stage + rank, &from[i][rank], 16, full,
                                 fault == TO_ITSELF ? 1u << rank
                                 : fault == NO_ROOM ? 7 : 3);
            }

            if (threadIdx.x == 32 * rank + 1) {
                hw_barrier_wait(full, i % 2);
                n_wrong += stage[0].w != 2 * i + 1;
                emu_yield();
                n_wrong += stage[1].w != 2 * i + 2;

                if (fault == OWN_ALONE) {
                    hw_barrier_arrive(empty);
                } else {
                    hw_cluster_arrive(empty, 0);
                    hw_cluster_arrive(empty, 1);
                }
            }
        }

        if (fault != ENDS) {
            hw_cluster_sync();
        }
    }, 2);

    return n_wrong;
}


/* A producer that does not wait for the other block's readers, barriers that
 * are not there yet, a block that ends while the other arrives, bytes that do
 * not come or nobody announced, and a third block of two. */
static void
test_cluster(void **)
{
    for (enum cluster_fault f : { OWN_ALONE, NOT_MADE, ENDS, TO_ITSELF,
                                  FEW_BYTES, NO_ROOM })
    {
        assert_true(is_caught([=] { return cluster_rounds(f) != 0; }));
    }

    assert_false(is_caught([] { return cluster_rounds(CLUSTER_RIGHT) != 0; }));
}


/* A cluster is whole, and no larger than it may be. */
static void
test_cluster_launch(void **)
{
    auto launch = [](unsigned n_blocks, unsigned n_cluster) {
        unsigned             blocks = 0;
        cudaLaunchAttribute  attr = {};
        cudaLaunchConfig_t   c = {};

        attr.id = cudaLaunchAttributeClusterDimension;
        attr.val.clusterDim.x = n_cluster;
        attr.val.clusterDim.y = attr.val.clusterDim.z = 1;
        c.gridDim = n_blocks;
        c.attrs = &attr;
        c.numAttrs = 1;
        c.blockDim = 32;
        emu_launch(&c, NULL, [&] {
            blocks |= (threadIdx.x == 0 && hw_cluster_rank() == blockIdx.x % 2)
                      << blockIdx.x;
        });

        return blocks == 15 ? 0 : 1;
    };

    assert_false(is_caught([&] { return launch(4, 2); }));
    assert_true(is_caught([&] { return launch(5, 2); }));
    assert_true(is_caught([&] { return launch(4, 4); }));
}


int
main()
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_second_barrier),
        cmocka_unit_test(test_shared_bounds),
        cmocka_unit_test(test_device_bounds),
        cmocka_unit_test(test_not_written),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_copy_over),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_ticket),
        cmocka_unit_test(test_shared_allowed),
        cmocka_unit_test(test_race),
        cmocka_unit_test(test_stuck),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_bulk),
        cmocka_unit_test(test_group),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_group_fp8),
        cmocka_unit_test(test_group_shared),
        cmocka_unit_test(test_bulk_put),
        cmocka_unit_test(test_cluster),
        cmocka_unit_test(test_cluster_launch),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
