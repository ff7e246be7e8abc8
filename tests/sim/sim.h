/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The simulator: what its parts share. */
#ifndef SIM_H
#define SIM_H

#include <qchain/io.h>
#include <qchain/job.h>
#include <qchain/target.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 *   chain-sim.c    seeds, options, one process for each
 *   sim-sched.c    loops and I/O under way: what ends next is drawn from the seed
 *   sim-disk.c     disks with a volatile cache; the door that images are opened through
 *   sim-images.c   the chain that a case begins with, made by qemu-img
 *   sim-device.c   the target, up and down, and what it shows
 *   sim-guest.c    the guest's requests
 *   sim-fault.c    I/O that fails: one by chance, or each in its turn
 *   sim-online.c   snapshots and merges, as qchainctl and the control thread make them
 *   sim-verbs.c    deletes and reverts, likewise
 *   sim-overlay.c  the images that are put on top
 *   sim-model.c    what each sector of the device and of each snapshot may hold
 *   sim-cut.c      power cuts and deaths: reopen, replay, judge
 */

#define SIM_BLOCK 512u
#define SIM_MAX_DISK (64u * 1024u * 1024u)
#define SIM_MAX_FLIGHT 32u
#define SIM_NAME 32u
#define SIM_QUEUES 2u

/* ---- chain-sim.c --------------------------------------------------------------- */

extern u64 sim_random;
extern u64 sim_seed;
extern bool sim_verbose;
extern char sim_folder[256];

u64 rnd(u64 n); /* below @n; 0: any */
bool chance(u32 percent);
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
int sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "FOLDER/@name": valid until the eighth call after this one. */
const char *sim_path(const char *name);

/* ---- a case -------------------------------------------------------------------- */

/* When a change of mapping is acknowledged, see chain-publish.c. */
enum sim_log {
	SIM_LOG, /* when the log has it */
	SIM_MAY_LOSE, /* at once: a death loses what was not flushed */
	SIM_LATE, /* after step 3 */
};

enum sim_merges { MERGES_ANY, MERGES_STREAM, MERGES_MIDDLE, MERGES_ACTIVE };

struct sim_layer {
	u32 cluster;
	u32 refcount_bits;
	u64 size;
	bool extl2;
	bool v2;
	bool snapshot; /* an internal one: shared clusters */
	bool compressed;
	bool dense; /* all of it is data, which compresses to a half */
	bool scattered; /* many small pieces */
};

#define SIM_MAX_LAYERS 5u
#define SIM_MAX_DEPTH 8u /* snapshots included */

/* What the seed has drawn. */
struct sim_plan {
	u32 nr_layers;
	struct sim_layer layers[SIM_MAX_LAYERS]; /* 0: the base */
	bool lv;
	bool small_lv;
	enum sim_log log;
	u32 cache_kib;
	u32 nr_ops;
	u32 window; /* requests at once */
	u32 pace_permille; /* steps in which one begins */
	u32 hot_sectors; /* where most of them go */
	u32 trim_percent;
	u32 lazy_device; /* percent of steps in which no I/O ends */
	u32 lazy_flush; /* ... not even when a flush was picked */
	u32 step_ns;
	enum sim_merges merges;
	u32 merge_percent; /* of what is begun; else snapshots */
	u32 commit_top, commit_base; /* depths, of commits below the active layer; 0: drawn */
	u32 cancel_percent; /* merges that may be cancelled */
	u32 beside_percent; /* merges that something may begin beside; else alone */
	u32 grow_percent; /* of what is done at all */
	u32 verb_percent; /* of what is done at all: deletes and reverts */
	u32 revert_percent; /* of these */
	u32 online_permille; /* steps that may begin a snapshot or a merge */
	u32 nr_online; /* so many, at most */
	u32 lives; /* how often what a cut left goes on living */
	bool faults;
};

extern struct sim_plan plan;

/* ---- sim-sched.c --------------------------------------------------------------- */

extern u64 sim_time; /* counts events */
extern void (*sim_watch)(void); /* is called after each; NULL: nobody looks */

/* One event: an I/O ends, a loop runs. False: nothing is left to happen. */
bool sim_step(void);
/* Until @is_so(@arg). */
void sim_run_until(bool (*is_so)(void *arg), void *arg, const char *what);
struct loop *sim_loop(const char *name);
/* All that ran is forgotten: its memory is lost. */
void sim_sched_forget(void);
/*
 * The kernel buffer of index @slot (struct request, fixed_index): @mem, registered
 * with the ring of @loop alone.
 */
void sim_kernel_buffer(u32 slot, const struct loop *loop, u8 *mem);
u32 sim_io_under_way(const struct io_dev *dev);

/* ---- sim-disk.c ---------------------------------------------------------------- */

struct sim_record;

struct sim_disk {
	struct cds_list_head node;
	char name[SIM_NAME];
	u8 *now; /* what a read finds */
	u8 *durable; /* what a power cut cannot take */
	u64 size;
	bool lv;
	bool small; /* grows while the guest runs */
	bool formatted; /* an image is on it */
	bool gone; /* was removed: nobody may ask for it */
	u32 opens;
	u32 writers;
	struct cds_list_head unflushed; /* struct sim_record: completed, by completion */
	int fd; /* of an empty file: the disk's name and identity */
};

/* A completed or pending write. */
struct sim_record {
	struct cds_list_head node;
	u64 offset;
	u32 len;
	u64 completed_at;
	u8 data[];
};

extern struct cds_list_head sim_disks;

/* @bytes 0: a regular file; else a volume that is full of old data. */
struct sim_disk *sim_disk_create(const char *name, u64 bytes);
/* The image that qemu-img made at this name is on it; @spare: bytes of volume behind that. */
struct sim_disk *sim_disk_load(const char *name, bool lv, u64 spare);
/* A volume gets @bytes more, which were somebody else's. */
void sim_disk_extend(struct sim_disk *d, u64 bytes);
struct sim_disk *sim_disk_find(const char *path);
struct sim_disk *sim_disk_of(const struct io_dev *dev);
void sim_disk_dump(const struct sim_disk *d, const char *path);
/* The contract of an I/O engine for one operation: checks, then the effect. */
struct sim_record *sim_disk_begin_write(struct io_op *op, const u8 *from);
void sim_disk_end_write(struct sim_disk *d, struct sim_record *rec_owned);
void sim_disk_read(const struct sim_disk *d, void *buf, u64 len, u64 offset);
/* Writes that were completed until @until are durable. */
void sim_disk_flush(struct sim_disk *d, u64 until);
/* Each sector of @rec arrives with a chance of @percent. */
void sim_disk_tear(u8 *to, const struct sim_record *rec, u32 percent);
/* A cut: nobody has it open; what was not flushed is kept with @percent of its sectors. */
void sim_disk_cut(struct sim_disk *d, bool power, u32 percent);
/* What it holds now is all there is. */
void sim_disk_settle(struct sim_disk *d);

/* Pending writes of all disks arrive, with @percent of their sectors. */
void sim_pending_arrive(u32 percent);

/* ---- sim-fault.c --------------------------------------------------------------- */

/* Does this I/O fail? 0 or -errno. */
int sim_fault(u8 type);
void sim_faults_draw(bool on);

struct sim_each {
	u64 stride; /* each so manieth I/O; 0: not this mode */
	u32 only_trial;
	u64 only_nth; /* 0: all */
};

/* The images are there: a life for each I/O that fails. */
void sim_faults_each(const struct sim_each *each);

/* ---- sim-images.c -------------------------------------------------------------- */

void sim_plan_draw(void);
void sim_draw_layer(struct sim_layer *l);
void sim_plan_print(void);
/* Disks "l0" (base) to "lN", and what they show. */
void sim_images_make(void);

/* ---- sim-work.c ---------------------------------------------------------------- */

/* False: there is no such kind of work. */
bool sim_work_choose(const char *name);
/*
 * Of what the seed has drawn: little, and of one kind of work; not chosen: the seed says
 * which. Or much, for chains that are busy.
 */
void sim_plan_work(bool faults);
/* The guest goes on until the chosen work was done, if there is any that must be. */
void sim_work_finish(void);

/* ---- sim-device.c -------------------------------------------------------------- */

struct sim_device {
	struct target *ti;
	struct loop *queues[SIM_QUEUES];
	struct loop *control;
	struct jobs *jobs;
};

enum sim_up { SIM_UP_FRESH, SIM_UP_TAKEOVER, SIM_UP_READ_ONLY };

extern struct sim_device device;
extern char sim_top[SIM_NAME]; /* what the device record calls the top (rule D1) */

/* -errno where the product says so. */
int sim_device_try_up(struct sim_device *d, const char *top, enum sim_up how, struct qc_err *err);
/* It has to come up, and be written to. */
void sim_device_up(struct sim_device *d, const char *top, enum sim_up how);
/* Nothing may be under way. */
void sim_device_down(struct sim_device *d);
/* What @d shows, through its own reads. */
void sim_device_read(struct sim_device *d, u8 *buf, u64 bytes);
/* The log of the life that ends is what the next one finds. */
void sim_log_inherit(void);
/* By depth: the disk of a layer; NULL: no such layer. */
struct sim_disk *sim_device_layer(u32 depth);

/* ---- sim-guest.c --------------------------------------------------------------- */

extern u32 guest_in_flight;
extern u32 guest_errors;

/* @nr requests; @whole: to the end of all, else some are left under way. */
void guest_run(u32 nr, bool whole);

/* ---- sim-model.c --------------------------------------------------------------- */

#define SIM_MAX_OPS 4000u
#define SIM_NOW UINT64_MAX

struct sim_op {
	u64 offset;
	u64 len;
	u64 submit;
	u64 done; /* 0: under way */
	u64 durable; /* 0: not */
	u8 op; /* enum req_op */
	bool error;
};

/* One thing that can be read: the device, or a snapshot. */
struct sim_view {
	struct cds_list_head node;
	char disk[SIM_NAME];
	u8 *initial; /* before any of the guest's operations */
	u64 bytes;
	u64 since; /* what had ended before is not in it: a revert */
	u64 instant; /* operations that were submitted later are not in it; SIM_NOW: the device */
	bool sealed; /* all that was acknowledged before @instant is durable */
	bool lost; /* a commit has begun to write below it (rule D2) */
	bool removed; /* lost, and out of the chain: gone before a commit begins (D3) */
	u64 may_grow_to; /* as long as a commit that has not ended makes its image */
};

extern struct sim_op sim_ops[SIM_MAX_OPS];
extern u32 nr_sim_ops;
extern struct sim_view sim_now_view; /* the device */
extern struct cds_list_head sim_views; /* snapshots */

/* The device is about to have @bytes: what is new reads as zero. */
void model_grows(u64 bytes);
/* It has as many as it was about to have, some time. Else nothing. */
void model_grown(u64 bytes);
/* All views are there; no operation is. */
void model_begin(void);
u32 model_submit(u8 op, u64 offset, u64 len, u8 *mem);
void model_end(u32 id, u8 flags, bool error);
/* A write's content. */
void model_tag(u8 *to, u32 id, u64 sector);
/*
 * May [@offset, + @len) of @view hold @data? What was done before @until must
 * show; @power: only if it was durable by then.
 */
void model_check(const struct sim_view *view, const u8 *data, u64 offset, u64 len, u64 until,
		 bool power, const char *what);
/* A read of the device; one that began before a revert may show either side of that. */
void model_check_read(const u8 *data, u64 offset, u64 len, u64 submitted);
/* A revert, at this instant: the device shows @initial_owned and no more what it @was. */
void model_turns_into(u8 *initial_owned, const struct sim_view *was);
/* @initial_owned: of @bytes */
struct sim_view *view_add(const char *disk, u8 *initial_owned, u64 bytes, u64 instant);
struct sim_view *view_find(const char *disk);
void view_remove(struct sim_view *view);

/* ---- sim-online.c -------------------------------------------------------------- */

/* One step of what qchainctl does, if any. */
void online_step(void);
/* The device record: one write, atomic and durable. */
void online_record_top(const char *name);

bool online_busy(void);
bool online_merges(void);
/* Nothing new begins; what is under way comes to its end, or is cancelled. */
void online_finish(void);
/* A random merge, to its end, with nothing else going on. */
void online_merge_alone(void);
/* What is under way is nobody's any more. */
void online_cut(void);
/* `up` has looked at what the cut has left. */
void online_after_cut(void);
extern u32 online_snapshots, online_streams, online_commits, online_pivots, online_growths;
extern u32 online_beside; /* snapshots and merges while another one ran */
/* A merge of neighbours begins, after which the image of layer @depth is deleted (rule D1). */
void online_delete(u32 depth);

/* ---- sim-verbs.c --------------------------------------------------------------- */

/* A delete or a revert begins, perhaps. */
void verb_begin(void);
bool revert_busy(void);
void revert_step(void);
/* A cut: what the disks hold says whether it has taken place (promise V3). */
void revert_cut(void);
/* Images that are no layers are removed, durably, and the snapshots that they were. */
void sim_bury_others(void);
extern u32 online_deletes, online_reverts;

/* ---- sim-overlay.c ------------------------------------------------------------- */

extern char sim_overlay[SIM_NAME]; /* the last one that was made */

/* An image of the device's size on @backing, formatted and durable; NULL: a fault. */
struct image *sim_overlay_make(const char *backing);
/* The last one is no layer: it goes, and does not hinder what comes (D3). */
void sim_overlay_remove(void);

/* ---- sim-cut.c ----------------------------------------------------------------- */

enum sim_cuts { CUTS_NONE, CUTS_RANDOM, CUTS_EVERY };

extern enum sim_cuts sim_cuts;
extern u32 nr_cuts;
extern bool sim_judging; /* in a child that looks at what a cut left */

/* Before each write and flush takes effect, and before each record write. */
void sim_point(void);
/* A header is being written: cuts soon, perhaps; @torn: it may be torn, surely. */
void cuts_hurry(bool torn);
void cuts_begin(enum sim_cuts how);
/* The device has stopped: all is judged. */
void cuts_judge_end(void);
/*
 * A fault is over. As it is served, if it is @up; then after a cut, or taken down:
 * what was not flushed may be lost then if, and only if, the target says so, which it
 * may if some I/O failed: @harmed.
 */
void cuts_judge_fault(bool up, bool harmed);
/* The rest of the case happens after a cut now, in a child; returns in it. */
void cuts_live_on(void);

#endif
