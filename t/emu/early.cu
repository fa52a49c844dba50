/*
 * early.cu - what the emulation finds of kernels that begin before others have
 * ended, of blocks that read each other's, and of words that go to the host.
 */
#include "caught.h"


/* A kernel that overlaps with the one before has to wait for it. */
static void
test_depend(void **)
{
    auto run = [](bool waits) {
        emu_run(2, N, 0, true, [&] {
            if (waits || threadIdx.x != 5) {
                hw_depend();
            }
        });

        return 0;
    };

    assert_false(is_caught([&] { return run(true); }));
    assert_true(is_caught([&] { return run(false); }));
}


enum early { NOT_EARLY, EARLY_LOAD, EARLY_STORE, EARLY_COPY, EARLY_KERNEL };

/* What the kernel ahead stores is loaded, or loads is stored, too early; what
 * the host has stored is there. */
static int
run_early(enum early how)
{
    uint4 from = { 1, 2, 3, 4 }, *p;
    int   sum = 0;

    cudaMalloc((void **) &p, sizeof(*p));
    cudaMemcpyAsync(p, &from, sizeof(from), cudaMemcpyHostToDevice, NULL);

    auto kernel = [&](bool stores) {
        uint4   *room = (uint4 *) (void *) hw_shared();
        unsigned x = how == EARLY_LOAD || how == NOT_EARLY ? p->w : 4;

        if (how == EARLY_COPY) {
            hw_copy16(room, p, true);
            hw_copy_commit();
        }

        if (how == EARLY_STORE) {
            p->y = 2;
        }

        hw_depend();

        if (stores) {
            p->w = 4;
        }

        hw_copy_wait<0>();
        sum += x == 4 && p->y == 2;
    };

    emu_run(1, 1, 16, true, [&] { kernel(how != NOT_EARLY); });
    emu_run(1, 1, 16, true, [&] { kernel(false); });

    return sum == 2 ? 0 : 1;
}


static void
test_early(void **)
{
    assert_false(is_caught([] { return run_early(NOT_EARLY); }));
    assert_false(is_caught([] { return run_early(EARLY_KERNEL); }));

    for (enum early how : { EARLY_LOAD, EARLY_STORE, EARLY_COPY }) {
        assert_true(!IS_SEEN || is_caught([=] { return run_early(how); }));
    }
}


/* What the kernel before the last stored is there early, if the last one let
 * this one begin behind its wait. */
static void
test_early_fresh(void **)
{
    auto load = [](bool hasty, unsigned n_ahead, bool fresh) {
        unsigned *p, x = 0;

        cudaMalloc((void **) &p, sizeof(*p));
        emu_run(1, 1, 0, true, [&] {
            hw_depend();
            *p = 3;
        });

        for (unsigned i = 0; i < n_ahead; i++) {
            emu_run(1, 1, 0, true, [&] {
                if (hasty) {
                    hw_release();
                }

                hw_depend();
                hw_release();
            });
        }

        emu_run(1, 1, 0, true, [&] {
            x = fresh ? hw_load_fresh(p) : *(volatile unsigned *) p;
            hw_depend();
        });

        return x == 3 ? 0 : 1;
    };

    assert_false(is_caught([&] { return load(false, 1, true); }));
    assert_true(!IS_SEEN || is_caught([&] { return load(false, 1, false); }));
    assert_true(!IS_SEEN || is_caught([&] { return load(false, 0, true); }));
    assert_true(!IS_SEEN || is_caught([&] { return load(true, 1, true); }));
}


/* The host goes on when it sees a word: another thread that stores it again may
 * do so when it is used for something else. */
static void
test_told(void **)
{
    auto tell = [](unsigned n) {
        unsigned *p;

        cudaMallocHost((void **) &p, sizeof(*p));
        emu_run(1, N, 0, false, [&] {
            if (threadIdx.x < n) {
                *(volatile unsigned *) p = 1;
            }
        });

        return *p == 1 ? 0 : 1;
    };

    assert_false(is_caught([&] { return tell(1); }));
    assert_true(!IS_SEEN || is_caught([&] { return tell(2); }));
}


/* What another block of the same kernel has stored may be there, but not in
 * this multiprocessor's L1; what this block has is. */
static void
test_fresh(void **)
{
    auto load = [](unsigned n_blocks, bool fresh) {
        float *p, sum = 0;

        cudaMalloc((void **) &p, sizeof(*p));
        emu_run(n_blocks, 1, 0, true, [&] {
            hw_depend();

            if (blockIdx.x == 0) {
                *p = 3;
            }

            if (blockIdx.x == n_blocks - 1) {
                sum += fresh ? hw_load_fresh(p) : *p;
            }
        });

        /* NaN, in another order of turns: who loads it has to know. */
        return sum == 3 || sum != sum ? 0 : 1;
    };

    assert_false(is_caught([&] { return load(2, true); }));
    assert_false(is_caught([&] { return load(1, false); }));
    assert_true(!IS_SEEN || is_caught([&] { return load(2, false); }));
}


/* Bulk copies do not see what a kernel before has stored, but behind a fence
 * that comes after the wait for it. */
static void
test_bulk_fence(void **)
{
    enum { BEFORE, AFTER, NEVER };
    auto copy = [](int when) {
        uint4   *p;
        unsigned x = 0;

        cudaMalloc((void **) &p, sizeof(*p));
        emu_run(1, 1, 0, true, [&] {
            hw_depend();
            p->w = 3;
        });
        emu_run(1, 1, 32, true, [&] {
            uint4    *room = (uint4 *) (void *) hw_shared();
            uint64_t *b = (uint64_t *) (void *) (hw_shared() + 16);

            hw_barrier_init(b, 1);

            if (when == BEFORE) {
                hw_bulk_fence();
            }

            hw_depend();

            if (when == AFTER) {
                hw_bulk_fence();
            }

            hw_barrier_expect(b, 16);
            hw_bulk_copy(room, p, 16, b);
            hw_barrier_wait(b, 0);
            x = room->w;
        });

        return x == 3 ? 0 : 1;
    };

    assert_false(is_caught([&] { return copy(AFTER); }));
    assert_true(!IS_SEEN || is_caught([&] { return copy(NEVER); }));
    assert_true(!IS_SEEN || is_caught([&] { return copy(BEFORE); }));
}


int
main()
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_depend),
        cmocka_unit_test(test_early),
        cmocka_unit_test(test_early_fresh),
        cmocka_unit_test(test_told),
        cmocka_unit_test(test_fresh),
        cmocka_unit_test(test_bulk_fence),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
