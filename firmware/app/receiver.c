/* Sorts what comes in; runs in the receive interrupt but for the functions of receiver.h. */
#include "receiver.h"

#include "crc.h"
#include "inference.h"
#include "port.h"

enum { FRAME_INPUT = 'i', COMMAND_END = '%' };
enum { HEADER_BYTES = 7, TRAILER_BYTES = 4, RING_BYTES = 256 };
enum { CUTS_OFF_PER_SECOND = 10, SILENCES_PER_SECOND = 50 };

enum {
    IN_TEXT,
    IN_HEADER,
    IN_PAYLOAD,
    IN_TRAILER,
    IN_DOUBT,  /* an error between commands: noise, or the loss of a first byte if more follow */
    IN_GARBAGE /* until silence */
};
enum { IMAGE_FREE, IMAGE_FILLS, IMAGE_FULL };

/* One struct, so that one register reaches all of it; bytes come early, where their instructions are short. */
static struct {
    /*
     * Set by the interrupt while 0, and set back by the main program: the side whose turn it is writes.
     * image_use is the interrupt's until it is IMAGE_FULL.
     */
    volatile uint8_t image_use, fault;
    volatile int8_t text_fault;

    /* Written by the main program, read by the interrupt. */
    volatile uint8_t ring_tail, image_is_offered;
    volatile uint32_t frames_given_up;

    /* Written by the interrupt, read by the main program. */
    volatile uint8_t state, ring_head;
    volatile uint16_t sequence, frame_sequence, fault_sequence;
    volatile uint32_t arrivals, frames_begun;

    /* Of the interrupt alone. */
    uint8_t command_is_open;
    uint8_t apart[HEADER_BYTES]; /* what is not payload: the header, then the trailer */
    uint8_t *place;              /* of the next byte of a frame */
    uint32_t missing, crc;
    uint64_t last_arrival;

    volatile uint8_t ring[RING_BYTES]; /* the interrupt's from ring_head on, then the main program's */
} receiver;

/* The core keeps the order of its own accesses; this makes the compiler keep it around inference_image. */
static void keep_order(void) { __asm__ volatile("" : : : "memory"); }

static int frame_is_open(void) {
    const uint8_t now = receiver.state;
    return now == IN_HEADER || now == IN_PAYLOAD || now == IN_TRAILER;
}

/* --- interrupt ------------------------------------------------------------------------------------------ */

static void close_frame(uint8_t next_state) {
    if (receiver.image_use == IMAGE_FILLS) {
        receiver.image_use = IMAGE_FREE;
    }
    receiver.state = next_state;
}

static void fail_frame(uint8_t what, uint8_t next_state) {
    if (receiver.fault == FAULT_NONE) {
        receiver.fault_sequence = receiver.sequence;
        receiver.fault = what;
    }
    close_frame(next_state);
}

static void fail_text(int8_t what) {
    receiver.text_fault = what;
    receiver.command_is_open = 0;
    receiver.state = IN_GARBAGE;
}

/* Returns whether there was room. */
static int keep_text(uint8_t byte) {
    const uint8_t next = (uint8_t)(receiver.ring_head + 1);
    if (next == receiver.ring_tail) {
        fail_text(TEXT_OVERRUN);
        return 0;
    }
    receiver.ring[receiver.ring_head] = byte;
    receiver.ring_head = next;
    return 1;
}

/* The next `count` bytes of a frame go to `place`. */
static void expect(uint8_t part, void *place, uint32_t count) {
    receiver.place = place;
    receiver.missing = count;
    receiver.state = part;
}

static void begin_frame(void) {
    if (receiver.command_is_open && !keep_text(FRAME_START)) {
        return;
    }
    receiver.command_is_open = 0;
    receiver.sequence = SEQUENCE_UNKNOWN;
    receiver.crc = CRC_START;
    receiver.frames_begun++;
    expect(IN_HEADER, receiver.apart, HEADER_BYTES);
}

static void begin_payload(void) {
    const uint8_t *const header = receiver.apart;
    const uint32_t expected = inference_model()->input_bytes;
    uint32_t length = 0;
    for (int i = HEADER_BYTES - 1; i > 2; i--) {
        length = length << 8 | header[i];
    }
    receiver.sequence = (uint16_t)(header[1] | header[2] << 8);
    if (header[0] != FRAME_INPUT || length != expected) {
        fail_frame(FAULT_HEADER, IN_GARBAGE);
    } else if (!receiver.image_is_offered || receiver.image_use != IMAGE_FREE) {
        fail_frame(FAULT_BUSY, IN_GARBAGE);
    } else {
        receiver.image_use = IMAGE_FILLS;
        expect(IN_PAYLOAD, inference_image, expected);
    }
}

static void end_frame(void) {
    if (receiver.crc != CRC_OF_ANY_WITH_ITS_OWN) {
        fail_frame(FAULT_CRC, IN_GARBAGE);
        return;
    }
    receiver.frame_sequence = receiver.sequence;
    receiver.state = IN_TEXT;
    keep_order();
    receiver.image_use = IMAGE_FULL;
}

static void add_to_frame(uint8_t byte) {
    receiver.crc = crc_add(receiver.crc, byte);
    *receiver.place++ = byte;
    if (--receiver.missing > 0) {
        return;
    }
    switch (receiver.state) {
    case IN_HEADER:
        begin_payload();
        break;
    case IN_PAYLOAD:
        expect(IN_TRAILER, receiver.apart, TRAILER_BYTES);
        break;
    default:
        end_frame();
    }
}

/* What the time since the last arrival ends. The main program may have given the frame up before. */
static void end_by_silence(void) {
    const uint64_t now = port_cycles(), silence = now - receiver.last_arrival;
    receiver.last_arrival = now;
    receiver.arrivals++;
    if (frame_is_open()) {
        if (receiver.frames_given_up == receiver.frames_begun) {
            close_frame(IN_TEXT);
        } else if (silence >= port_clock_hz() / CUTS_OFF_PER_SECOND) {
            fail_frame(FAULT_CUT_OFF, IN_TEXT);
        }
    } else if (receiver.state >= IN_DOUBT && receiver.text_fault == 0 &&
               silence >= port_clock_hz() / SILENCES_PER_SECOND) {
        receiver.state = IN_TEXT;
    }
}

void receive_byte(uint8_t byte) {
    end_by_silence();
    if (frame_is_open()) {
        add_to_frame(byte);
    } else if (receiver.state == IN_DOUBT) {
        receiver.sequence = SEQUENCE_UNKNOWN;
        fail_frame(FAULT_DAMAGED, IN_GARBAGE);
    } else if (receiver.state == IN_TEXT) {
        if (byte == FRAME_START) {
            begin_frame();
        } else if (keep_text(byte)) {
            receiver.command_is_open = byte != COMMAND_END;
        }
    }
}

void receive_error(void) {
    end_by_silence();
    if (frame_is_open()) {
        fail_frame(FAULT_DAMAGED, IN_GARBAGE);
    } else if (receiver.state == IN_TEXT && receiver.command_is_open) {
        fail_text(TEXT_DAMAGED);
    } else if (receiver.state == IN_TEXT) {
        receiver.state = IN_DOUBT;
    }
}

/* --- main program --------------------------------------------------------------------------------------- */

int receiver_take_text(void) {
    const int8_t lost = receiver.text_fault; /* read first: only then an empty ring is what the loss left */
    const uint8_t tail = receiver.ring_tail;
    if (tail != receiver.ring_head) {
        const uint8_t byte = receiver.ring[tail];
        receiver.ring_tail = (uint8_t)(tail + 1);
        return byte;
    }
    if (lost != 0) {
        receiver.text_fault = 0;
        return lost;
    }
    return TEXT_NONE;
}

/* Gives up a frame if nothing arrived for too long, by the clock of the calls of this function. */
static int frame_is_cut_off(void) {
    static uint32_t arrivals_seen;
    static uint64_t seen_at;
    const uint32_t begun = receiver.frames_begun;
    if (!frame_is_open() || begun == receiver.frames_given_up) {
        return 0;
    }
    if (receiver.arrivals != arrivals_seen) {
        arrivals_seen = receiver.arrivals;
        seen_at = port_cycles();
        return 0;
    }
    if (port_cycles() - seen_at < port_clock_hz() / CUTS_OFF_PER_SECOND ||
        receiver.arrivals != arrivals_seen) {
        return 0;
    }
    receiver.frames_given_up = begun;
    return 1;
}

int receiver_take_fault(uint16_t *of) {
    const uint8_t what = receiver.fault;
    if (what != FAULT_NONE) {
        *of = receiver.fault_sequence;
        receiver.fault = FAULT_NONE;
        return what;
    }
    if (frame_is_cut_off()) {
        *of = receiver.sequence;
        return FAULT_CUT_OFF;
    }
    return FAULT_NONE;
}

int receiver_has_frame(uint16_t *of) {
    const int full = receiver.image_use == IMAGE_FULL;
    *of = receiver.frame_sequence;
    keep_order();
    return full;
}

void receiver_release_frame(void) {
    keep_order();
    receiver.image_use = IMAGE_FREE;
}

uint32_t receiver_frames_begun(void) { return receiver.frames_begun; }

int receiver_hold_image(void) {
    receiver.image_is_offered = 0;
    if (receiver.image_use != IMAGE_FREE) {
        receiver.image_is_offered = 1;
        return 0;
    }
    keep_order();
    return 1;
}

void receiver_release_image(void) {
    keep_order();
    receiver.image_is_offered = 1;
}

int receiver_has_work(void) {
    return receiver.ring_head != receiver.ring_tail || receiver.text_fault != 0 ||
           receiver.fault != FAULT_NONE || receiver.image_use == IMAGE_FULL ||
           (frame_is_open() && receiver.frames_begun != receiver.frames_given_up);
}
