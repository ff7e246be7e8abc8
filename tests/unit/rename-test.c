// SPDX-License-Identifier: GPL-2.0-or-later
/* Names of layers that change while a merge reads them on a worker. */
#include "../../ublk-target/target/chain-merge.h"
#include "../../ublk-target/target/target-private.h"
#include "mock-loop.h"

#include <errno.h>
#include <qchain/online.h>
#include <stdlib.h>

#define LAYERS 2u

static struct chain_target ct;
static struct target ti = { .type = &target_chain, .private = &ct };
static struct chain chain;
static struct chain_layer layers[LAYERS];
static struct layer in_table[LAYERS];
static struct layer *by_id[LAYERS];
static u16 order[LAYERS] = { 0, 1 };
static struct layer_table table = { .nr = LAYERS, .nr_ids = LAYERS, .by_id = by_id,
				    .order = order };

static void setup(void)
{
	static const char *const names[LAYERS] = { "top", "base" };

	memset(&ct, 0, sizeof(ct));
	CDS_INIT_LIST_HEAD(&ct.renames);
	ct.loop = mock_loop;
	ct.chain = &chain;
	ct.map.table = &table;
	chain.layers = layers;
	chain.nr_layers = LAYERS;
	for (u32 i = 0; i < LAYERS; i++) {
		snprintf(layers[i].node_name, sizeof(layers[i].node_name), "%s", names[i]);
		layers[i].path = strdup(names[i]);
		in_table[i].path = strdup(names[i]);
		by_id[i] = &in_table[i];
	}
}

static void clean(void)
{
	CU_ASSERT_TRUE(cds_list_empty(&ct.renames));
	for (u32 i = 0; i < LAYERS; i++) {
		free(layers[i].path);
		free(in_table[i].path);
	}
}

static void take(struct loop *loop, void *arg)
{
	CU_ASSERT_TRUE(turn_try(&ct, "job"));
}

static void give(struct loop *loop, void *arg)
{
	turn_end(&ct);
}

static void expect_names(const char *shown, const char *read)
{
	CU_ASSERT_STRING_EQUAL(chain_layer_path(&ct, 1), shown);
	CU_ASSERT_STRING_EQUAL(layers[1].path, read);
	CU_ASSERT_STRING_EQUAL(in_table[1].path, read);
	CU_ASSERT_STRING_EQUAL(chain_layer_path(&ct, 0), "top");
}

static void test_at_once(void)
{
	struct qc_err err = { 0 };

	setup();
	CU_ASSERT_EQUAL(chain_rename_layer(&ti, "base", "/new", &err), 0);
	expect_names("/new", "/new");
	CU_ASSERT_EQUAL(chain_rename_layer(&ti, "other", "/new", &err), -ENOENT);
	clean();
}

/* Whoever has the turn may read them: they are neither freed nor changed. */
static void test_beside_merge(void)
{
	const char *before, *in_table_before;
	struct qc_err err = { 0 };

	setup();
	before = layers[1].path;
	in_table_before = in_table[1].path;
	loop_call(ct.loop, take, NULL);
	CU_ASSERT_EQUAL(chain_rename_layer(&ti, "base", "/new", &err), 0);
	expect_names("/new", "base");
	CU_ASSERT_EQUAL(chain_rename_layer(&ti, "base", "/newer", &err), 0);
	expect_names("/newer", "base");
	CU_ASSERT_PTR_EQUAL(layers[1].path, before);
	CU_ASSERT_PTR_EQUAL(in_table[1].path, in_table_before);
	loop_call(ct.loop, give, NULL);
	expect_names("/newer", "/newer");
	clean();
}

static void test_layer_gone(void)
{
	struct qc_err err = { 0 };

	setup();
	loop_call(ct.loop, take, NULL);
	CU_ASSERT_EQUAL(chain_rename_layer(&ti, "base", "/new", &err), 0);
	chain.nr_layers--;
	loop_call(ct.loop, give, NULL);
	CU_ASSERT_STRING_EQUAL(layers[1].path, "base");
	CU_ASSERT_STRING_EQUAL(layers[0].path, "top");
	clean();
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "at once", test_at_once },
		{ "beside a merge that has the turn", test_beside_merge },
		{ "of a layer that is merged meanwhile", test_layer_gone },
		{ NULL, NULL },
	};

	return mock_main("rename", tests);
}
