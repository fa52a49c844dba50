/*
 * Tests of engine/kv.c: random holders against a simple account of who holds
 * what and of what was let go when; and that names are told apart.
 */
#include "engine/kv.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "rng.h"

#define N_PAGES     24
#define N_NAMES     40
#define N_HANDS     12          /* holders, each of up to N_PAGES pages */

struct account {
    uint32_t    refs[N_PAGES];
    uint32_t    name[N_PAGES];  /* + 1; 0: blank */
    uint64_t    let_go[N_PAGES];
    uint32_t    n_held[N_HANDS];
    uint32_t    held[N_HANDS][N_PAGES];
    uint64_t    now;
};


static struct kv_name
name_of(uint32_t i)
{
    struct kv_name root = kv_root("x", 1);

    return kv_child(&root, &i, 1);
}


static uint32_t
n_free(const struct account *a)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_PAGES; i++) {
        n += a->refs[i] == 0;
    }

    return n;
}


/* Is it right that this page was taken, and not another free one? */
static void
check_taken(const struct account *a, uint32_t page)
{
    assert_int_equal(a->refs[page], 0);

    for (uint32_t i = 0; i < N_PAGES; i++) {
        if (a->refs[i] == 0) {
            assert_true(a->name[page] == 0 || a->name[i] != 0);
            assert_true(a->name[page] == 0 || a->let_go[page] <= a->let_go[i]);
        }
    }
}


static void
take(struct kv *kv, struct account *a, uint32_t hand)
{
    uint32_t n = 1 + rng(4), got[4];

    if (n > N_PAGES - a->n_held[hand]) {
        return;
    }

    if (kv_take(kv, n, got) != 0) {
        assert_true(n > n_free(a));
        return;
    }

    for (uint32_t i = 0; i < n; i++) {
        check_taken(a, got[i]);
        a->refs[got[i]] = 1;
        a->name[got[i]] = 0;
        a->held[hand][a->n_held[hand]++] = got[i];
    }
}


static void
share(struct kv *kv, struct account *a, uint32_t hand)
{
    uint32_t       i_name = rng(N_NAMES), expected = KV_NONE;
    struct kv_name name = name_of(i_name);
    uint32_t       page = kv_find(kv, &name);

    for (uint32_t i = 0; i < N_PAGES; i++) {
        expected = a->name[i] == i_name + 1 ? i : expected;
    }

    assert_int_equal(page, expected);

    if (page != KV_NONE && a->n_held[hand] < N_PAGES) {
        assert_int_equal(kv_is_free(kv, page), a->refs[page] == 0);
        kv_share(kv, page);
        a->refs[page]++;
        a->held[hand][a->n_held[hand]++] = page;
    }
}


static void
give_name(struct kv *kv, struct account *a, uint32_t hand)
{
    if (a->n_held[hand] == 0) {
        return;
    }

    uint32_t       at = rng(a->n_held[hand]);
    uint32_t       page = a->held[hand][at], i_name = rng(N_NAMES);
    struct kv_name name = name_of(i_name);

    if (a->refs[page] != 1 || a->name[page] != 0) {
        return;
    }

    uint32_t now = kv_name(kv, page, &name);

    if (now != page) {
        assert_int_equal(a->name[now], i_name + 1);
        a->refs[now]++;
        a->refs[page] = 0;
    }

    a->name[now] = i_name + 1;
    a->held[hand][at] = now;

    /* Held once more, under one name alone. */
    for (uint32_t i = 0; i < N_PAGES; i++) {
        assert_true(i == now || a->name[i] != i_name + 1);
    }
}


static void
drop(struct kv *kv, struct account *a, uint32_t hand)
{
    kv_drop(kv, a->held[hand], a->n_held[hand]);

    for (uint32_t i = a->n_held[hand]; i-- > 0;) {
        uint32_t page = a->held[hand][i];

        if (--a->refs[page] == 0) {
            a->let_go[page] = ++a->now;
        }
    }

    a->n_held[hand] = 0;
}


static void
random_holders(void **state)
{
    (void) state;

    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct kv     *kv = kv_create(N_PAGES, 1);
        struct account a = { .now = 0 };

        rng_state = seed * 0x9e3779b97f4a7c15ULL;

        for (int i = 0; i < 2000; i++) {
            uint32_t hand = rng(N_HANDS);

            switch (rng(5)) {
            case 0:
                take(kv, &a, hand);
                break;
            case 1:
                share(kv, &a, hand);
                break;
            case 2:
            case 3:
                give_name(kv, &a, hand);
                break;
            default:
                drop(kv, &a, hand);
            }

            assert_int_equal(kv_pages_free(kv), n_free(&a));
        }

        kv_free(kv);
    }
}


static void
without_a_cache_nothing_is_found(void **state)
{
    struct kv     *kv = kv_create(2, 0);
    struct kv_name name = name_of(1);
    uint32_t       page;

    (void) state;

    assert_int_equal(kv_take(kv, 1, &page), 0);
    assert_int_equal(kv_name(kv, page, &name), page);
    assert_int_equal(kv_find(kv, &name), KV_NONE);
    kv_drop(kv, &page, 1);
    assert_int_equal(kv_pages_free(kv), 2);
    kv_free(kv);
}


/* Salt, parent, tokens and their order all count; and a salt that is made of
 * the very bytes of a page is another name all the same. */
static void
names_differ(void **state)
{
    uint32_t       tokens[2] = { 1, 2 }, turned[2] = { 2, 1 };
    struct kv_name a = kv_root("", 0), b = kv_root("b", 1);
    char           forged[sizeof(a) + sizeof(tokens)];

    memcpy(forged, &a, sizeof(a));
    memcpy(forged + sizeof(a), tokens, sizeof(tokens));

    struct kv_name all[] = {
        a, b, kv_root("b\0", 2), kv_child(&a, tokens, 2),
        kv_child(&b, tokens, 2), kv_child(&a, turned, 2),
        kv_child(&a, tokens, 1), kv_root(forged, sizeof(forged))
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(all); i++) {
        for (size_t k = 0; k < i; k++) {
            assert_memory_not_equal(&all[i], &all[k], sizeof(all[0]));
        }
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_holders),
        cmocka_unit_test(without_a_cache_nothing_is_found),
        cmocka_unit_test(names_differ),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
