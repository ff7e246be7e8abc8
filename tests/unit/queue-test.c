// SPDX-License-Identifier: GPL-2.0-or-later
/* Tags that parked writes keep (rule E2): counted once a tag, told once, never flickering. */
#include "../../ublk-target/target/chain-private.h"
#include "unit.h"

#include <string.h>

#define TAGS 16u

static struct layer layer = { .path = (char *)"mem", .node_name = "mem" };
static struct target ti;
static struct chain_target ct;
static struct writer writer;
static struct request_queue queue;
static struct request_tag tags[TAGS];
static struct request reqs[TAGS];
static struct slow_request parents[TAGS];
static struct write_op ops[TAGS * 2]; /* two of each request */
static u32 nr_events;
static char last_event[64];

static void on_event(void *arg, const char *name, json_object *data_owned)
{
	nr_events++;
	snprintf(last_event, sizeof(last_event), "%s", name);
	json_object_put(data_owned);
}

static void setup(u64 bytes)
{
	memset(tags, 0, sizeof(tags));
	memset(reqs, 0, sizeof(reqs));
	memset(ops, 0, sizeof(ops));
	memset(&ct, 0, sizeof(ct));
	nr_events = 0;
	ct.ti = &ti;
	target_set_event(&ti, on_event, NULL);
	CDS_INIT_LIST_HEAD(&ct.queues);
	writer = (struct writer){ .ct = &ct, .layer = &layer };
	queue = (struct request_queue){ .name = "q", .tags = TAGS, .bytes = bytes };
	for (u32 i = 0; i < TAGS; i++) {
		tags[i].queue = &queue;
		tags[i].bytes = 1000;
		reqs[i].tag = &tags[i];
		parents[i] = (struct slow_request){ .ct = &ct, .req = &reqs[i] };
	}
	for (u32 i = 0; i < 2 * TAGS; i++)
		ops[i] = (struct write_op){ .writer = &writer, .parent = &parents[i / 2] };
}

static void park_tags(u32 from, u32 to)
{
	for (u32 i = from; i < to; i++)
		queue_park(&ops[2 * i]);
}

/* 12 of 16 leave a quarter; the 13th leaves less. */
static void test_threshold(void)
{
	setup(0);
	park_tags(0, 12);
	CU_ASSERT_EQUAL(queue.parked, 12);
	CU_ASSERT_FALSE(queue.low);
	CU_ASSERT_EQUAL(nr_events, 0);
	park_tags(12, 13);
	CU_ASSERT_TRUE(queue.low);
	CU_ASSERT_TRUE(queue_is_low(&ops[0]));
	CU_ASSERT_EQUAL(nr_events, 1);
	CU_ASSERT_STRING_EQUAL(last_event, "QCHAIN_QUEUE_LOW");
	park_tags(13, TAGS);
	CU_ASSERT_EQUAL(nr_events, 1);
}

/* Several operations of one request keep one tag, however often they ask. */
static void test_one_tag(void)
{
	setup(0);
	queue_park(&ops[0]);
	queue_park(&ops[1]);
	queue_park(&ops[0]);
	CU_ASSERT_EQUAL(queue.parked, 1);
	queue_unpark(&ops[0]);
	CU_ASSERT_EQUAL(queue.parked, 1);
	CU_ASSERT_FALSE(cds_list_empty(&ct.queues));
	queue_unpark(&ops[0]);
	queue_unpark(&ops[1]);
	CU_ASSERT_EQUAL(queue.parked, 0);
	CU_ASSERT_TRUE(cds_list_empty(&ct.queues));
}

/* Told again only after it was not low in between. */
static void test_again(void)
{
	setup(0);
	park_tags(0, TAGS);
	queue_unpark(&ops[0]);
	CU_ASSERT_TRUE(queue.low);
	queue_park(&ops[0]);
	CU_ASSERT_EQUAL(nr_events, 1);
	for (u32 i = 0; i < 6; i++)
		queue_unpark(&ops[2 * i]);
	CU_ASSERT_FALSE(queue.low);
	CU_ASSERT_EQUAL(queue.parked, 10);
	park_tags(0, 6);
	CU_ASSERT_EQUAL(nr_events, 2);
}

/* Memory that the requests of a connection share runs out before its tags. */
static void test_bytes(void)
{
	setup(8000);
	park_tags(0, 6);
	CU_ASSERT_FALSE(queue.low);
	park_tags(6, 7);
	CU_ASSERT_TRUE(queue.low);
	CU_ASSERT_EQUAL(nr_events, 1);
	queue_unpark(&ops[0]);
	CU_ASSERT_FALSE(queue.low);
	CU_ASSERT_EQUAL(queue.parked_bytes, 6000);
}

static void test_small_queue(void)
{
	setup(0);
	queue.tags = 1;
	queue_park(&ops[0]);
	CU_ASSERT_TRUE(queue.low);
}

static void test_without_tag(void)
{
	setup(0);
	reqs[0].tag = NULL;
	queue_park(&ops[0]);
	CU_ASSERT_FALSE(queue_is_low(&ops[0]));
	queue_unpark(&ops[0]);
	CU_ASSERT_STRING_EQUAL(reqs[0].stage, "space");
}

static void test_json(void)
{
	json_object *list;

	setup(0);
	park_tags(0, 13);
	list = queues_json(&ct);
	CU_ASSERT_STRING_EQUAL(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN),
			       "[{\"queue\":\"q\",\"tags\":16,\"parked\":13,\"low\":true}]");
	json_object_put(list);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "a quarter", test_threshold },
		{ "one tag, several operations", test_one_tag },
		{ "low, not low, low", test_again },
		{ "shared memory", test_bytes },
		{ "a queue of one", test_small_queue },
		{ "a request without a tag", test_without_tag },
		{ "status", test_json },
		{ NULL, NULL },
	};

	return unit_main("queue", tests);
}
