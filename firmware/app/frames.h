/* Replies to frames. */
#ifndef MICROSTILL_FRAMES_H
#define MICROSTILL_FRAMES_H

#ifdef __cplusplus
extern "C" {
#endif

/* Reports a fault if there is one, and infers what a frame has brought if one has come. */
void frames_serve(void);

#ifdef __cplusplus
}
#endif

#endif
