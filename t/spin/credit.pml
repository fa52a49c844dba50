/*
 * credit.pml - credits per slot, cancel, slot reuse and the end of a worker's
 * attach, for one engine and one worker
 *
 * The engine owns the event ring: a DELTA costs a credit, the terminal frame
 * none.  The worker owns the request ring: REQUEST,
 * CANCEL, CREDIT.  Both rings have positions of their own for written and
 * published, taken and released, as ring.h has; several frames go under one
 * publication, and a release may lag behind what was taken.  A client may stop
 * reading for ever, whereupon it is cancelled; a slot serves one request after
 * another.  Frames are counted in cells of one; padding is t/unit/ring.c's.
 *
 * What it proves, over every interleaving:
 *   - the event ring has room whenever the engine has credit, and for each
 *     terminal frame whether it has or not;
 *   - at every moment, for each open slot, credits held by the engine, credits
 *     under way and frames not yet paid back are WINDOW together: none is lost,
 *     none doubled, also across the reuse of a slot;
 *   - the engine never sees more credit than the window, nor a request in a
 *     slot that it still holds open, from an honest worker;
 *   - every request ends once, and nobody waits for ever for a client that
 *     reads, nor for another's client (no "invalid end state").
 *
 * Run (Debian packages: spin, gcc):
 *   spin -a credit.pml && gcc -O2 -w -o pan pan.c && ./pan -m1000000
 * Wanted: "errors: 0" and no "max search depth too small".
 *
 * Mutants - each must give "errors: 1":
 *   -DREUSE_EARLY     a cancelled slot is used again before its terminal frame
 *   -DPUBLISH_FIRST   credits are published before the events are released
 *   -DNO_TERMINAL     the ring has no room of its own for terminal frames
 *   -DTERMINAL_PAYS   the terminal frame waits for credit like any other
 *   -DKEEP_CREDIT     the engine lets a request go on with the credit that the
 *                     slot's last one left
 *   -DKEEP_OWED       the worker pays a request back what the slot's last one
 *                     had coming, as after a re-attach that forgot to reset it
 *   -DPAY_TWICE       what was paid back is not struck off
 * Show a failing run with: spin -t -p -DKEEP_OWED credit.pml
 *
 * What it found: a late CREDIT or CANCEL needs no tag against its slot's next
 * use, since the request ring keeps their order; it is for dishonest peers.
 */
#define NSLOT   2
#ifndef WINDOW
#define WINDOW  2       /* frames */
#endif
#ifndef NUSE
#define NUSE    2       /* requests in slot 0, one after the other; slot 1: 1 */
#endif
#define NTOK    3       /* frames that an answer would have: over the window */

#ifdef NO_TERMINAL
#define CAP     (NSLOT * WINDOW)
#else
#define CAP     (NSLOT * (WINDOW + 1))
#endif

mtype = { REQUEST, CANCEL, CREDIT, DELTA, END };

/* event ring: frames in order, and the engine's view of what is free */
chan event = [CAP + 4] of { mtype, byte, byte };    /* type, slot, use */
byte tail, head;                        /* published by engine, by worker */

/* request ring, published whole; never full here: keep_cells sees to that */
chan request = [16] of { mtype, byte, byte, byte }; /* type, slot, use, n */

/* the engine's private state */
bool busy[NSLOT];
byte use[NSLOT], credit[NSLOT], left[NSLOT];

/* ghosts: per slot, frames in the event ring or held by the worker and not yet
 * paid back, and credits on their way to the engine */
byte unpaid[NSLOT], way[NSLOT];
byte ends[NSLOT];                       /* terminal frames taken */
byte w_use[NSLOT];                      /* use that the worker has open */
bool w_open[NSLOT];

/* nothing lost, nothing doubled: engine's + under way + unpaid */
#define SOUND(s)    (!busy[s] || w_use[s] != use[s] || !w_open[s] || \
                     credit[s] + way[s] + unpaid[s] == WINDOW)

/* Private scraps that would only multiply the states. */
#define FORGET  s = 0; u = 0; n = 0

inline put_event(type, s)
{
    assert(tail - head < CAP);          /* never full: this is the proof */
    event ! type, s, use[s];
    tail++
}

active proctype engine()
{
    byte s, u, n;

end_idle:
    do
    :: atomic { request ? REQUEST, s, u, n ->
        d_step {
            assert(!busy[s]);           /* else an honest worker is detached */
            busy[s] = 1;
            use[s] = u;
#ifdef KEEP_CREDIT
            if
            :: u == 1 -> credit[s] = WINDOW
            :: else
            fi;
#else
            credit[s] = WINDOW;
#endif
            left[s] = NTOK;
            FORGET
        } }
    :: atomic { request ? CREDIT, s, u, n ->
        d_step {
            if
            :: busy[s] && use[s] == u ->
                assert(credit[s] + n <= WINDOW);
                credit[s] = credit[s] + n;
                way[s] = way[s] - n;
                assert(SOUND(s))
            :: else                     /* late, which is normal */
            fi;
            FORGET
        } }
    :: atomic { request ? CANCEL, s, u, n ->
#ifdef TERMINAL_PAYS
        if
        :: busy[s] && use[s] == u -> (credit[s] > 0)
        :: else
        fi;
#endif
        d_step {
            if
            :: busy[s] && use[s] == u ->
                put_event(END, s);
                busy[s] = 0
            :: else
            fi;
            FORGET
        } }
    :: d_step { busy[0] && left[0] > 0 && credit[0] > 0 ->
            put_event(DELTA, 0); credit[0]--; unpaid[0]++; left[0]-- }
    :: d_step { busy[1] && left[1] > 0 && credit[1] > 0 ->
            put_event(DELTA, 1); credit[1]--; unpaid[1]++; left[1]-- }
    :: d_step { busy[0] && left[0] == 0 -> put_event(END, 0); busy[0] = 0 }
    :: d_step { busy[1] && left[1] == 0 -> put_event(END, 1); busy[1] = 0 }
    od
}

inline open_slot(s)
{
    d_step {
        w_use[s]++;
        w_open[s] = 1;
        cancelled[s] = 0;
#ifndef KEEP_OWED
        owed[s] = 0;
#endif
        unpaid[s] = 0;
        way[s] = 0;
        request ! REQUEST, s, w_use[s], 0
    }
}

/* what the client has taken goes back; a deaf client takes nothing */
inline pay(s)
{
    d_step {
        request ! CREDIT, s, w_use[s], owed[s];
        way[s] = way[s] + owed[s];
        unpaid[s] = unpaid[s] - owed[s];
#ifndef PAY_TWICE
        owed[s] = 0;
#endif
        assert(SOUND(s))
    }
}

active proctype worker()
{
    byte s, u, n, taken;                 /* taken: private, ahead of head */
    byte owed[NSLOT];
    bool cancelled[NSLOT], deaf[NSLOT];
    mtype type;

    open_slot(0);
    open_slot(1);

    do
    :: atomic { event ? type, s, u ->
        d_step {
            taken++;
            if
            :: type == DELTA && w_open[s] && u == w_use[s] ->
                if
                :: cancelled[s] -> skip /* nobody needs credit for that */
                :: else -> owed[s]++
                fi
            :: type == END && w_open[s] && u == w_use[s] ->
                w_open[s] = 0;
                ends[s]++;
                assert(ends[s] <= w_use[s])
            :: else
            fi;
            type = 0;
            FORGET
        } }
    :: taken != head -> head = taken    /* ring_release() */

        /* the client reads, now or later: then its credits are published */
#ifdef PUBLISH_FIRST
    :: owed[0] > 0 && w_open[0] && !cancelled[0] && !deaf[0] -> pay(0)
    :: owed[1] > 0 && w_open[1] && !cancelled[1] && !deaf[1] -> pay(1)
#else
    :: taken == head && owed[0] > 0 && w_open[0] && !cancelled[0] && !deaf[0]
        -> pay(0)
    :: taken == head && owed[1] > 0 && w_open[1] && !cancelled[1] && !deaf[1]
        -> pay(1)
#endif

        /* the client of slot 0 goes away, or stops reading and is cut off */
    :: w_open[0] && !cancelled[0] ->
        d_step { cancelled[0] = 1; request ! CANCEL, 0, w_use[0], 0 }
    :: w_open[0] && !cancelled[0] && !deaf[0] -> deaf[0] = 1

#ifdef REUSE_EARLY
    :: w_open[0] && cancelled[0] && w_use[0] < NUSE ->
        ends[0]++; deaf[0] = 0; open_slot(0)
#endif
#ifdef PUBLISH_FIRST
    :: !w_open[0] && w_use[0] < NUSE -> deaf[0] = 0; open_slot(0)
#else
    :: taken == head && !w_open[0] && w_use[0] < NUSE ->
        deaf[0] = 0; open_slot(0)
#endif

    :: !w_open[0] && !w_open[1] && w_use[0] == NUSE -> break
    od;

    assert(ends[0] == NUSE && ends[1] == 1)
}
