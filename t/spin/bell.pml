/*
 * bell.pml - a bell that is not read at each wake-up
 *
 * The bell is a byte in a socket whose queue holds CAP of them; what does not
 * fit is lost.  The consumer waits for edges: each byte that goes in makes one,
 * two that nobody has taken yet are one, and one whose queue has been emptied
 * meanwhile is none, as epoll has it.  It reads the queue only when it has gone
 * to sleep LAZY times since it last did, before it looks at the ring.  Besides,
 * it looks at the ring by a timer of its own, TICKS times: that sends it to
 * sleep without an edge, and after the last of them only a bell can wake it.
 *
 * What it proves, with the event index of wake.pml (whose fences are taken as
 * given: a publication and its look are one step here, so are going to sleep
 * and the look after it):
 *   - no lost wake-up: the consumer never waits for ever while a frame is there
 *     (would be reported as "invalid end state");
 *   - an unread bell costs nothing but its place in the queue.
 *
 * Run (Debian packages: spin, gcc):
 *   spin -a bell.pml && gcc -O2 -w -o pan pan.c && ./pan -m100000
 *   spin -DNO_TICKS -a bell.pml && gcc -O2 -w -o pan pan.c && ./pan -m100000
 * Wanted: "errors: 0" and no "max search depth too small".
 *
 * Mutants - each, with either variant, must give "errors: 1":
 *   -DNEVER_READ    the queue is never read
 *   -DLATE          ... or later than it is full
 *   -DREAD_AFTER    it is read after the last look at the ring
 *   -DNO_RECHECK    the consumer sleeps without looking at the tail again
 * Show a failing run with: spin -t -p -DNEVER_READ bell.pml
 */
#ifndef CAP
#define CAP  3          /* unread bells that the queue holds */
#endif
#ifdef LATE
#define LAZY (CAP + 2)
#else
#define LAZY 2          /* sleeps until it is read; <= CAP */
#endif
#ifdef NO_TICKS
#define TICKS 0
#else
#define TICKS 2
#endif
#ifndef NMSG
#define NMSG 9          /* frames sent, enough to fill the queue twice */
#endif

byte tail, wake_at;
byte queue;                         /* unread bells */
bool edge;                          /* epoll's ready list has the socket */

active proctype producer()
{
    byte t;

    do
    :: t == NMSG -> break
    :: t < NMSG ->
        d_step {                    /* ring_publish(), ring_bell_ring() */
            t++;
            tail = t;
            if
            :: wake_at == t - 1 && queue < CAP -> queue++; edge = 1
            :: else                 /* nobody sleeps, or EAGAIN */
            fi
        }
    od
}

active proctype consumer()
{
    byte h, sleeps, ticks;
    bool rung;

    do
    :: h == NMSG -> break
    :: h < NMSG ->
#ifndef READ_AFTER
        if
#ifndef NEVER_READ
        :: rung && sleeps >= LAZY -> queue = 0; sleeps = 0
        :: !(rung && sleeps >= LAZY)
#else
        :: true
#endif
        fi;
#endif
        rung = 0;
        do                          /* ring_get() until AGAIN */
        :: tail != h -> h++
        :: tail == h -> break
        od;
        skip;
        d_step {                    /* ring_sleep() */
            wake_at = h;
            sleeps++
        }
        if
#ifndef NO_RECHECK
        :: tail != h                /* a frame came meanwhile: stay up */
        :: tail == h ->
#else
        :: true ->
#endif
#ifdef READ_AFTER
            if
            :: sleeps >= LAZY -> queue = 0; sleeps = 0
            :: else
            fi;
#endif
            if
            :: h == NMSG            /* all is there: nothing to wait for */
            :: h < NMSG ->
wait:           if                  /* epoll_wait() */
                :: atomic { edge && queue > 0 -> edge = 0; rung = 1 }
                :: atomic { edge && queue == 0 -> edge = 0 }; goto wait
                :: ticks < TICKS -> ticks++
                fi
            fi
        fi
    od
}
