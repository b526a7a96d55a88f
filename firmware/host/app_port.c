/*
 * The application as a program of the host: what its serial port receives, and when, is a script on standard
 * input, and what it sends goes to standard output. Time is simulated, so that the same script gives the
 * same bytes.
 *
 * A record is a letter and a number of four bytes, the lowest first:
 *
 *   B n   then n bytes: they arrive, each as long after the one before as the baud rate says
 *   T n   the line is silent for n microseconds
 *   E n   n times the receiver finds a byte damaged or lost
 *   S n   nothing arrives until the application has nothing to do but wait; then the line is silent for n
 *         microseconds
 *
 * Time passes where the application asks for it or sends: that is also where the receive interrupt comes. What
 * lies between two calls of port_lap(), an inference, takes HOST_LAP_US. The program ends, with status 0, when
 * the script has ended and the application waits; with status 1 where a record is not whole or output cannot
 * be written.
 */
#include <stdio.h>
#include <stdlib.h>

#include "port.h"

#ifndef HOST_LAP_US
#define HOST_LAP_US 10000
#endif

enum { CLOCK_HZ = 64000000, CYCLES_PER_US = CLOCK_HZ / 1000000, BITS_PER_BYTE = 10 };
enum { CYCLES_PER_BYTE = CLOCK_HZ / PORT_BAUD * BITS_PER_BYTE, CYCLES_PER_CALL = CYCLES_PER_US };

const char port_name[] = "host";

static uint64_t now, next_arrival;
static int in_interrupt, script_has_ended;

/* The record that is being played; `left` bytes of B, errors of E, or whether T or S has yet to pass. */
static int kind;
static uint32_t left, microseconds;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static int next_byte(void) {
    const int byte = getchar();
    if (byte == EOF) fail("the script ends within a record");
    return byte;
}

/* Makes the next record current if the last one has been played; 0 at the end of the script. */
static int read_record(void) {
    while (left == 0 && !script_has_ended) {
        kind = getchar();
        if (kind == EOF) {
            script_has_ended = 1;
            break;
        }
        uint32_t number = 0;
        for (int shift = 0; shift < 32; shift += 8) number |= (uint32_t)next_byte() << shift;
        microseconds = number;
        left = kind == 'B' || kind == 'E' ? number : 1;
    }
    return !script_has_ended;
}

static void interrupt(void) {
    in_interrupt = 1;
    if (kind == 'B') {
        receive_byte((uint8_t)next_byte());
    } else {
        receive_error();
    }
    in_interrupt = 0;
}

static void be_silent(void) {
    next_arrival += (uint64_t)microseconds * CYCLES_PER_US;
    left = 0;
}

/* Plays what arrives up to now. */
static void play(void) {
    while (!in_interrupt && read_record() && kind != 'S') {
        if (kind == 'T') {
            be_silent();
        } else if (kind != 'B' && kind != 'E') {
            fail("no record begins with this letter");
        } else if (next_arrival > now) {
            return;
        } else {
            left--;
            next_arrival += CYCLES_PER_BYTE;
            interrupt();
        }
    }
}

static void pass(uint64_t cycles) {
    const uint64_t end = now + cycles;
    if (in_interrupt) return;
    while (play(), read_record() && kind != 'S' && next_arrival <= end) now = next_arrival;
    now = end;
}

void port_start(void) {}

uint32_t port_clock_hz(void) { return CLOCK_HZ; }

void port_write(const void *bytes, size_t count) {
    if (fwrite(bytes, 1, count, stdout) != count) fail("standard output cannot be written");
    pass((uint64_t)count * CYCLES_PER_BYTE);
}

uint64_t port_cycles(void) {
    pass(CYCLES_PER_CALL);
    return now;
}

uint32_t port_lap(void) {
    static int is_running;
    if (is_running) pass((uint64_t)HOST_LAP_US * CYCLES_PER_US);
    is_running = !is_running;
    return (uint32_t)now;
}

void port_wait(int (*ready)(void)) {
    play();
    while (!ready()) {
        if (!read_record()) exit(fflush(stdout) == 0 ? 0 : 1);
        if (kind == 'S') {
            next_arrival = now;
            be_silent();
        } else if (next_arrival > now) {
            now = next_arrival;
        }
        play();
    }
}

void port_paint_stack(void) {}

uint32_t port_stack_bytes(void) { return 0; }
