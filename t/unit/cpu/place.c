/*
 * place.c with machines that are files in a directory: which CPU, which node
 * and which rows each thread has.  Machines are written as a node a word, its
 * CPUs a letter: "aabb ccdd" is two nodes of two cores of two halves each.
 */
#include "engine/cpu/place.c"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char root[] = "/tmp/moe-place-XXXXXX";


static void
put(const char *path, const char *text)
{
    char  name[512], command[1200];
    FILE *f;

    snprintf(name, sizeof(name), "%s/%s", root, path);
    snprintf(command, sizeof(command), "mkdir -p $(dirname '%s')", name);
    assert_int_equal(system(command), 0);
    f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}


static void
forget(void)
{
    char command[256];

    snprintf(command, sizeof(command), "rm -rf '%s'/*", root);
    assert_int_equal(system(command), 0);
}


/* CPUs are numbered as they come, but with `across` node by node in turn: 0 of
 * the first, 1 of the second, ... as some machines do. */
static void
write_machine(const char *s, int across)
{
    char nodes[8][256] = { "" }, cores[26][256] = { "" }, path[128], online[16];
    int  cpu_of[128], n_nodes = 1, per = (int) strcspn(s, " ");
    int  n_all = ((int) strlen(s) + 1) / (per + 1);

    forget();

    for (int i = 0, at = 0; s[i] != '\0'; i++) {
        if (s[i] == ' ') {
            n_nodes++;
            at = 0;
            continue;
        }

        int  cpu = across ? at * n_all + n_nodes - 1 : i - n_nodes + 1;
        char one[8];

        cpu_of[i] = cpu;
        snprintf(one, sizeof(one), "%d,", cpu);
        strncat(nodes[n_nodes - 1], one, 200);
        strncat(cores[s[i] - 'a'], one, 200);
        at++;
    }

    for (int i = 0, node = 0; s[i] != '\0'; i++) {
        if (s[i] == ' ') {
            node++;
            continue;
        }

        snprintf(path, sizeof(path), "devices/system/cpu/cpu%d/topology/"
                 "thread_siblings_list", cpu_of[i]);
        put(path, cores[s[i] - 'a']);
        snprintf(path, sizeof(path), "devices/system/node/node%d/cpulist",
                 node);
        put(path, nodes[node]);
    }

    snprintf(online, sizeof(online), "0-%d\n", n_nodes - 1);
    put("devices/system/node/online", online);
}


/* What n threads of such a machine are: "0 1|2 3", CPUs by node, or sets of
 * CPUs "0,1" where a thread has more; "any" where it has all. */
static void
check(const char *mask, int n, int pin, const char *want)
{
    struct place_machine m;
    struct place         p;
    cpu_set_t            may_use;
    char                 got[512] = "";

    CPU_ZERO(&may_use);

    for (size_t i = 0; mask[i] != '\0'; i++) {
        if (mask[i] == '1') {
            CPU_SET(i, &may_use);
        }
    }

    place_read(&m, root, &may_use);
    place_make(&p, &m, n, pin);
    assert_int_equal(p.first[0], 0);
    assert_int_equal(p.first[p.n_nodes], p.n);

    for (int k = 0; k < p.n_nodes; k++) {
        for (int i = p.first[k]; i < p.first[k + 1]; i++) {
            const char *sep = i == 0 ? "" : i == p.first[k] ? "|" : " ";
            cpu_set_t   cpus;

            strncat(got, sep, 2);

            if (!place_cpus(&p, i, &cpus)) {
                strncat(got, "any", 4);
                continue;
            }

            sep = "";

            for (size_t c = 0; c < CPU_SETSIZE; c++) {
                if (CPU_ISSET(c, &cpus)) {
                    char one[16];

                    snprintf(one, sizeof(one), "%s%zu", sep, c);
                    strncat(got, one, 16);
                    sep = ",";
                }
            }
        }
    }

    assert_string_equal(got, want);
}


static void
test_one_node(void **state)
{
    (void) state;
    write_machine("abcd", 0);
    check("1111", 0, 1, "0 1 2 3");
    check("1111", 4, 1, "0 1 2 3");
    check("1111", 4, 0, "any any any any");
    check("1111", 0, 0, "any any any any");

    /* Who leaves cores to others does not say which. */
    check("1111", 3, 1, "any any any");
    check("1111", 1, 1, "any");

    /* More than there are. */
    check("1111", 5, 1, "any any any any any");
}


static void
test_halves_of_cores(void **state)
{
    (void) state;
    write_machine("aabbcc", 0);
    check("111111", 0, 1, "0,1 2,3 4,5");
    check("111111", 2, 1, "any any");
    check("111111", 6, 1, "0,1 0,1 2,3 2,3 4,5 4,5");
    check("111111", 4, 1, "0,1 2,3 4,5 4,5");

    /* Of the second core only the other half is ours. */
    check("110110", 0, 1, "0,1 3 4");
}


static void
test_two_nodes(void **state)
{
    (void) state;
    write_machine("abc def", 0);
    check("111111", 0, 1, "0 1 2|3 4 5");
    check("111111", 4, 1, "0,1,2 0,1,2|3,4,5 3,4,5");
    check("111111", 2, 1, "0,1,2|3,4,5");
    check("111111", 6, 0, "any any any any any any");
    check("111111", 7, 1, "any any any any any any any");

    write_machine("abc def", 1);
    check("111111", 0, 1, "0 2 4|1 3 5");
    check("111111", 2, 1, "0,2,4|1,3,5");
}


static void
test_uneven(void **state)
{
    (void) state;
    write_machine("abcd ef", 0);
    check("111111", 0, 1, "0 1 2 3|4 5");
    check("111111", 3, 1, "0,1,2,3 0,1,2,3|4,5");

    /* What a control group leaves: a part of one node, one of another. */
    write_machine("abcd efgh", 0);
    check("00111000", 0, 1, "2 3|4");
    check("00001111", 0, 1, "4 5 6 7");
    check("00001111", 2, 1, "any any");
    check("10000001", 0, 1, "0|7");
}


static void
test_four_nodes(void **state)
{
    (void) state;
    write_machine("ab cd ef gh", 0);
    check("11111111", 0, 1, "0 1|2 3|4 5|6 7");
    check("11111111", 4, 1, "0,1|2,3|4,5|6,7");
    check("11001111", 0, 1, "0 1|4 5|6 7");
}


static void
test_quota(void **state)
{
    (void) state;
    write_machine("abcd", 0);
    put("fs/cgroup/cpu.max", "250000 100000\n");
    check("1111", 0, 1, "any any");
    check("1111", 4, 1, "0 1 2 3");
    put("fs/cgroup/cpu.max", "50000 100000\n");
    check("1111", 0, 1, "any");
    put("fs/cgroup/cpu.max", "800000 100000\n");
    check("1111", 0, 1, "0 1 2 3");
    put("fs/cgroup/cpu.max", "max 100000\n");
    check("1111", 0, 1, "0 1 2 3");
    put("fs/cgroup/cpu.max", "\n");
    check("1111", 0, 1, "0 1 2 3");
}


/* A container may see nothing of it, or see nonsense. */
static void
test_nothing_to_read(void **state)
{
    (void) state;
    forget();
    check("1101", 0, 1, "0 1 3");
    put("devices/system/node/online", "0-1\n");
    put("devices/system/node/node0/cpulist", "x\n");
    put("devices/system/node/node1/cpulist", "5-2,-7,99999999999\n");
    put("devices/system/cpu/cpu1/topology/thread_siblings_list", "\n");
    check("1101", 0, 1, "0 1 3");
    check("", 0, 1, "any");
}


/* Rows: all of them, none twice, and those of a node are its threads'. */
static void
test_rows(void **state)
{
    struct place_machine m;
    struct place         p;
    cpu_set_t            may_use;

    (void) state;
    write_machine("abcd ef", 0);
    memset(&may_use, 0xff, sizeof(may_use));

    for (int i = 6; i < CPU_SETSIZE; i++) {
        CPU_CLR((size_t) i, &may_use);
    }

    place_read(&m, root, &may_use);
    place_make(&p, &m, 0, 1);

    for (uint32_t n = 0; n < 100; n++) {
        uint32_t a, b, c, d;

        place_part(&p, n, 0, &a, &b);
        place_part(&p, n, 1, &c, &d);
        assert_int_equal(a, 0);
        assert_int_equal(b, n * 4 / 6);
        assert_int_equal(c, b);
        assert_int_equal(d, n);
    }
}


static int
setup(void **state)
{
    (void) state;

    return mkdtemp(root) != NULL ? 0 : -1;
}


static int
teardown(void **state)
{
    (void) state;
    forget();

    return rmdir(root);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_node),
        cmocka_unit_test(test_halves_of_cores),
        cmocka_unit_test(test_two_nodes), cmocka_unit_test(test_uneven),
        cmocka_unit_test(test_four_nodes), cmocka_unit_test(test_quota),
        cmocka_unit_test(test_nothing_to_read), cmocka_unit_test(test_rows)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, setup, teardown);
}
