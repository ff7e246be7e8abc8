/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The daemon's loop and target, compiled into the simulator with its own threads. */
#ifndef SIM_SHIM_H
#define SIM_SHIM_H

static int sim_sem_wait(sem_t *sem);

#define loop_create real_loop_create
#define loop_start real_loop_start
#define loop_stop real_loop_stop
#define loop_destroy real_loop_destroy
#include "../../ublk-target/io/loop.c"
#undef loop_create
#undef loop_start
#undef loop_stop
#undef loop_destroy

int loop_create(const char *name, struct io_engine *io_owned, struct loop **result);
int loop_start(struct loop *loop, int cpu);
void loop_stop(struct loop *loop);
void loop_destroy(struct loop *loop);

#define sem_wait sim_sem_wait
#define sem_trywait sim_sem_wait
#include "../../ublk-target/target/target-chain.c"
#undef sem_wait
#undef sem_trywait

#endif
