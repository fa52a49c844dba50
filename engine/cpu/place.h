/*
 * place.h - which thread runs where, and so which rows of weights lie where.
 *
 * The mental model.  A machine is CPUs, each of a core and a node; memory of
 * its own node is near to a CPU, that of others is far.  Threads are numbered
 * node by node, and thread i of n works on the i-th n-th of every matrix's
 * rows: so what a node's threads work on hangs together, and lies in that
 * node's memory.  On a machine of one node there is one part, the whole.
 *
 * place_make() is a function of its arguments alone; place_read() asks the
 * system.
 */
#ifndef MOE_CPU_PLACE_H
#define MOE_CPU_PLACE_H

#include <sched.h>

#include "base.h"

#define PLACE_CPUS_MAX      CPU_SETSIZE     /* threads, too */
#define PLACE_NODES_MAX     64

/* The CPUs that a process may use. */
struct place_machine {
    int         n_cpus;
    struct place_cpu {
        int     cpu;            /* the system's number */
        int     node;           /* the system's number */
        int     core;           /* the first CPU of ours that is of its core */
    } cpus[PLACE_CPUS_MAX];
    int         quota;          /* CPUs' worth of time; 0: no limit */
};

struct place {
    struct place_machine machine;
    int         n;              /* threads */
    int         n_nodes;        /* that have threads */
    /* Node k has threads [first[k], first[k + 1]). */
    int         first[PLACE_NODES_MAX + 1];
    /* Thread i's CPU, an index of the machine's; -1: any of all nodes. */
    int         cpu[PLACE_CPUS_MAX];
    int         pinned;         /* to it; else to its node */
};

/* Reads the machine from `root`, which is "/sys".  What cannot be read there
 * counts as one node, and as a core a CPU. */
void place_read(struct place_machine *m, const char *root,
                const cpu_set_t *may_use);

/*
 * n threads; 0: one per core, but no more than the quota.  They are spread
 * over nodes and cores, over cores before their second halves.  Where there is
 * a thread for every core each is pinned; where there are fewer it is kept to
 * its node alone, since another engine may be meant to have the other cores.
 * More threads than CPUs, or pin = 0: they run anywhere, on one node.
 */
void place_make(struct place *p, const struct place_machine *m, int n,
                int pin);

/* Where thread i may run.  0: anywhere. */
int place_cpus(const struct place *p, int i, cpu_set_t *cpus);

/* The node of a thread. */
static inline int
place_node(const struct place *p, int i)
{
    int k = 0;

    while (i >= p->first[k + 1]) {
        k++;
    }

    return k;
}

/* Node k's part of 0 .. n_all - 1: [*from, *to). */
static inline void
place_part(const struct place *p, uint32_t n_all, int k, uint32_t *from,
           uint32_t *to)
{
    *from = (uint32_t) ((uint64_t) n_all * (uint32_t) p->first[k]
                        / (uint32_t) p->n);
    *to = (uint32_t) ((uint64_t) n_all * (uint32_t) p->first[k + 1]
                      / (uint32_t) p->n);
}

#endif /* MOE_CPU_PLACE_H */
