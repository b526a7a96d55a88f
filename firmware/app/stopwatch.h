/* Time in the units of replies. */
#ifndef MICROSTILL_STOPWATCH_H
#define MICROSTILL_STOPWATCH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Microseconds since port_start(). */
uint64_t stopwatch_microseconds(void);

/* Calls inference_run() and returns its cycles, interrupts within it included. */
uint64_t stopwatch_inference(void);

#ifdef __cplusplus
}
#endif

#endif
