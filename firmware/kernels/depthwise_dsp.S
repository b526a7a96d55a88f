/* 3x3 depthwise convolutions of one channel, two outputs at a time, for cores with the DSP extension.
 *
 * Registers: r0-r2 rows, r3 out, r4-r9 weights (0, 1) and (1, 2) of each row, r10 and r11 sums,
 * r12 and lr pixels, later scale. */
#if defined(__ARM_FEATURE_DSP)
    .syntax unified
    .thumb
    .text

    .set ROWS, 0       /* ms_depthwise_3x3, copied to the stack */
    .set WEIGHTS, 12
    .set BIAS, 36
    .set MULTIPLIER, 40
    .set ROUND, 48
    .set STEP, 52
    .set ROW_BYTES, 56
    .set WIDTH_BYTES, 60
    .set HEIGHT, 64
    .set END, 68       /* of the first row */
    .set FRAME, 72

/* Adds a row's products to both sums. */
.macro row_1 in, weights_01, weights_12
    ldr r12, [\in], #4
    ldr lr, [\in]
    smlad r10, r12, \weights_01, r10
    smlatb r11, r12, \weights_01, r11
    smlabt r10, lr, \weights_12, r10
    smlad r11, lr, \weights_12, r11
.endm

.macro row_2 in, weights_01, weights_12
    ldr r12, [\in], #4
    ldr lr, [\in], #4
    smlad r10, r12, \weights_01, r10
    smlad r11, lr, \weights_01, r11
    ldr r12, [\in]
    smlabt r10, lr, \weights_12, r10
    smlabt r11, r12, \weights_12, r11
.endm

.macro depthwise name, row
    .global \name
    .type \name, %function
    .balign 4
\name:
    push {r4-r11, lr}
    sub sp, sp, #FRAME
    mov r3, r1
    ldm r0!, {r4-r12}
    stm sp, {r4-r12}
    ldm r0, {r4-r11}
    add r12, sp, #BIAS
    stm r12, {r4-r11}
    add r0, sp, #WEIGHTS
    ldm r0, {r4-r9}
1:  ldm sp, {r0-r2}
    ldr r12, [sp, #WIDTH_BYTES]
    add r12, r12, r0
    str r12, [sp, #END]
2:  ldr r10, [sp, #BIAS]
    mov r11, r10
    \row r0, r4, r5
    \row r1, r6, r7
    \row r2, r8, r9
    ldrd r12, lr, [sp, #MULTIPLIER]
    lsls.w r10, r10, #1
    lsls.w r11, r11, #1
    smmulr r10, r10, r12
    smmulr r11, r11, r12
    ldr r12, [sp, #ROUND]
    add.w r10, r10, r10, asr #31
    add.w r11, r11, r11, asr #31
    asr.w r10, r10, lr
    asr.w r11, r11, lr
    add.w r10, r10, r12
    add.w r11, r11, r12
    ldr r12, [sp, #END]
    ldr lr, [sp, #STEP]
    ssat r10, #8, r10, asr #1
    ssat r11, #8, r11, asr #1
    strb r10, [r3]
    add r3, r3, lr
    cmp r0, r12
    itt ls
    strbls r11, [r3]
    addls r3, r3, lr
    blo 2b

    ldm sp, {r0-r2}
    ldr r12, [sp, #ROW_BYTES]
    add r0, r0, r12
    add r1, r1, r12
    add r2, r2, r12
    stm sp, {r0-r2}
    ldr r12, [sp, #HEIGHT]
    subs r12, r12, #1
    str r12, [sp, #HEIGHT]
    bne 1b
    add sp, sp, #FRAME
    pop {r4-r11, pc}
    .size \name, . - \name
.endm

    depthwise ms_depthwise_3x3_stride_1, row_1
    depthwise ms_depthwise_3x3_stride_2, row_2
#endif
