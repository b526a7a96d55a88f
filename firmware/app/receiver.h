/*
 * What comes in over the serial port, sorted by the receive interrupt: text into a ring, the payload of frames
 * into inference_image. receive_byte() and receive_error() of port.h are defined here; they run in the
 * interrupt, all below in the main program. Neither waits for the other, and no interrupt is ever masked: each
 * shared variable has one writer.
 */
#ifndef MICROSTILL_RECEIVER_H
#define MICROSTILL_RECEIVER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Begins a frame; no text has it. */
enum { FRAME_START = 0x01 };

/* --- text ----------------------------------------------------------------------------------------------- */

enum { TEXT_NONE = -1, TEXT_OVERRUN = -2, TEXT_DAMAGED = -3 };

/*
 * The next byte of text. FRAME_START where a frame began within a command, which it ends.
 * After the last byte before a loss TEXT_OVERRUN, where the ring was full, or TEXT_DAMAGED, once: what the
 * command so far is part of is lost, and what follows up to 20 ms of silence.
 */
int receiver_take_text(void);

/* --- frames --------------------------------------------------------------------------------------------- */

enum {
    FAULT_NONE,
    FAULT_HEADER, /* of another type or length than the model's input */
    FAULT_CRC,
    FAULT_BUSY,    /* inference_image was not free */
    FAULT_CUT_OFF, /* no byte for 100 ms */
    FAULT_DAMAGED
};

/* Sequence of a frame whose header did not come. */
enum { SEQUENCE_UNKNOWN = 0xffff };

/* A fault and the sequence of its frame; of several in a row the first. FAULT_NONE if there is none. */
int receiver_take_fault(uint16_t *sequence);

/* Whether a whole frame lies in inference_image; it stays there until receiver_release_frame(). */
int receiver_has_frame(uint16_t *sequence);
void receiver_release_frame(void);

/* Frames that have begun, whole or not: each may have changed inference_image. */
uint32_t receiver_frames_begun(void);

/* --- both ----------------------------------------------------------------------------------------------- */

/*
 * Keeps frames out of inference_image (FAULT_BUSY) until it is released. Returns 0, and does nothing, where
 * one is there or on its way. The image is held when the program starts.
 */
int receiver_hold_image(void);
void receiver_release_image(void);

/* Whether there is anything to take, or a frame under way whose end may never come. */
int receiver_has_work(void);

#ifdef __cplusplus
}
#endif

#endif
