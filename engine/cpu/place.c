/*
 * place.c - see place.h.
 */
#include "cpu/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES      4096
#define NODE                "devices/system/node"


/* The first line of root/path; 0, or -1. */
static int
read_line(char *line, const char *root, const char *path)
{
    char  name[LINE_MAX_BYTES];
    FILE *f;

    snprintf(name, sizeof(name), "%s/%s", root, path);
    f = fopen(name, "re");

    if (f == NULL) {
        return -1;
    }

    char *p = fgets(line, LINE_MAX_BYTES, f);

    fclose(f);

    return p != NULL ? 0 : -1;
}


/* list = range { "," range };  range = number [ "-" number ] */
static int
read_list(cpu_set_t *set, const char *root, const char *path)
{
    char line[LINE_MAX_BYTES], *end;

    CPU_ZERO(set);

    if (read_line(line, root, path) != 0) {
        return -1;
    }

    for (char *p = line; *p >= '0' && *p <= '9'; p = end + (*end == ',')) {
        long from = strtol(p, &end, 10), to = from;

        if (*end == '-') {
            to = strtol(end + 1, &end, 10);
        }

        for (; from <= to && from < CPU_SETSIZE; from++) {
            CPU_SET((size_t) from, set);
        }
    }

    return 0;
}


static void
read_nodes(struct place_machine *m, const char *root)
{
    char      path[64];
    cpu_set_t nodes, cpus;

    if (read_list(&nodes, root, NODE "/online") != 0) {
        return;
    }

    for (int node = 0; node < CPU_SETSIZE; node++) {
        snprintf(path, sizeof(path), NODE "/node%d/cpulist", node);

        if (!CPU_ISSET((size_t) node, &nodes)
            || read_list(&cpus, root, path) != 0)
        {
            continue;
        }

        for (int i = 0; i < m->n_cpus; i++) {
            if (CPU_ISSET((size_t) m->cpus[i].cpu, &cpus)) {
                m->cpus[i].node = node;
            }
        }
    }
}


static void
read_core(struct place_cpu *c, const char *root, const cpu_set_t *may_use)
{
    char      path[96];
    cpu_set_t core;

    snprintf(path, sizeof(path),
             "devices/system/cpu/cpu%d/topology/thread_siblings_list", c->cpu);

    if (read_list(&core, root, path) != 0) {
        return;
    }

    CPU_AND(&core, &core, may_use);

    for (int cpu = c->cpu - 1; cpu >= 0; cpu--) {
        if (CPU_ISSET((size_t) cpu, &core)) {
            c->core = cpu;
        }
    }
}


/* "max 100000", or microseconds in every so many. */
static int
read_quota(const char *root)
{
    char line[LINE_MAX_BYTES], *end;

    if (read_line(line, root, "fs/cgroup/cpu.max") != 0) {
        return 0;
    }

    long us = strtol(line, &end, 10);
    long every = end != line ? strtol(end, NULL, 10) : 0;

    if (us <= 0 || every <= 0) {
        return 0;
    }

    return us / every < 1 ? 1 : us / every > PLACE_CPUS_MAX
           ? PLACE_CPUS_MAX : (int) (us / every);
}


void
place_read(struct place_machine *m, const char *root, const cpu_set_t *may_use)
{
    memset(m, 0, sizeof(*m));

    for (int cpu = 0; cpu < PLACE_CPUS_MAX; cpu++) {
        if (CPU_ISSET((size_t) cpu, may_use)) {
            struct place_cpu *c = &m->cpus[m->n_cpus++];

            c->cpu = c->core = cpu;
            read_core(c, root, may_use);
        }
    }

    read_nodes(m, root);
    m->quota = read_quota(root);
}


static int
is_first(const struct place_cpu *c)
{
    return c->cpu == c->core;
}


static int
by_node(const void *a, const void *b)
{
    const struct place_cpu *x = a, *y = b;

    return x->node != y->node ? (x->node > y->node) - (x->node < y->node)
                              : (x->cpu > y->cpu) - (x->cpu < y->cpu);
}


/* Marks n of the n_of CPUs that are the first of their core, or of the others,
 * evenly spread. */
static void
choose(const struct place_machine *m, int first, int n_of, int n,
       uint8_t *chosen)
{
    int at = 0;

    for (int i = 0; i < m->n_cpus; i++) {
        if (is_first(&m->cpus[i]) == first) {
            chosen[i] = (at + 1) * n / n_of > at * n / n_of;
            at++;
        }
    }
}


/* Gives the threads the CPUs that are marked, one after the other. */
static void
number(struct place *p, const uint8_t *chosen)
{
    const struct place_cpu *cpus = p->machine.cpus;
    int                     n = 0;

    for (int i = 0; i < p->machine.n_cpus; i++) {
        if (!chosen[i]) {
            continue;
        }

        if (n == 0 || (cpus[i].node != cpus[p->cpu[n - 1]].node
                       && p->n_nodes < PLACE_NODES_MAX))
        {
            p->first[p->n_nodes++] = n;
        }

        p->cpu[n++] = i;
    }

    p->first[p->n_nodes] = n;
}


void
place_make(struct place *p, const struct place_machine *m, int n, int pin)
{
    uint8_t chosen[PLACE_CPUS_MAX] = { 0 };
    int     n_cores = 0;

    memset(p, 0, sizeof(*p));
    p->machine = *m;
    qsort(p->machine.cpus, (size_t) m->n_cpus, sizeof(m->cpus[0]), by_node);

    for (int i = 0; i < m->n_cpus; i++) {
        n_cores += is_first(&m->cpus[i]);
    }

    if (n == 0) {
        n = m->quota > 0 && m->quota < n_cores ? m->quota : n_cores;
    }

    p->n = n < 1 ? 1 : n > PLACE_CPUS_MAX ? PLACE_CPUS_MAX : n;

    if (!pin || p->n > m->n_cpus) {
        memset(p->cpu, 0xff, sizeof(p->cpu));
        p->n_nodes = 1;
        p->first[1] = p->n;
        return;
    }

    p->pinned = p->n >= n_cores;
    choose(&p->machine, 1, n_cores, p->pinned ? n_cores : p->n, chosen);

    if (p->n > n_cores) {
        choose(&p->machine, 0, m->n_cpus - n_cores, p->n - n_cores, chosen);
    }

    number(p, chosen);
}


int
place_cpus(const struct place *p, int i, cpu_set_t *cpus)
{
    const struct place_machine *m = &p->machine;

    if (p->cpu[i] < 0 || (!p->pinned && p->n_nodes == 1)) {
        return 0;
    }

    const struct place_cpu *own = &m->cpus[p->cpu[i]];

    CPU_ZERO(cpus);

    for (int k = 0; k < m->n_cpus; k++) {
        const struct place_cpu *c = &m->cpus[k];

        if (p->pinned ? c->core == own->core : c->node == own->node) {
            CPU_SET((size_t) c->cpu, cpus);
        }
    }

    return 1;
}
