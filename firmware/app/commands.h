/* Commands in text, those of MLPerf Tiny's serial interface and `about`. */
#ifndef MICROSTILL_COMMANDS_H
#define MICROSTILL_COMMANDS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Says that the device is ready, and whether its self-test passed. */
void commands_start(int self_test_passed);

/* Takes text until a command is complete, which it executes, or there is no more. */
void commands_serve(void);

#ifdef __cplusplus
}
#endif

#endif
