// SPDX-License-Identifier: GPL-2.0-or-later
/* Merges in a device record: their phases, as JSON and as tags of an LV. */
#include "unit.h"

#include <errno.h>
#include <qchain/record.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct record_job commit = {
	.id = "commit0", .kind = "commit", .phase = RECORD_FAILED, .top = "a:b=c d.qcow2",
	.base = "/srv/\xc3\xa4/base.qcow2", .error = "mon.qcow2: no space left (28), 100% full",
};
static const struct record_job stream = {
	.id = "stream0", .kind = "stream", .phase = RECORD_WRITING, .top = "top.qcow2",
};

static void check_same(const struct record_job *found, const struct record_job *wanted)
{
	CU_ASSERT_PTR_NOT_NULL_FATAL(found);
	CU_ASSERT_STRING_EQUAL(found->id, wanted->id);
	CU_ASSERT_STRING_EQUAL(found->kind, wanted->kind);
	CU_ASSERT_EQUAL(found->phase, wanted->phase);
	CU_ASSERT_STRING_EQUAL(found->top, wanted->top);
	CU_ASSERT_STRING_EQUAL(found->base, wanted->base);
	CU_ASSERT_STRING_EQUAL(found->error, wanted->error);
}

static void test_list(void)
{
	struct device_record record = {};
	struct record_job changed = commit;

	CU_ASSERT_EQUAL(device_record_put_job(&record, &commit), 0);
	CU_ASSERT_EQUAL(device_record_put_job(&record, &stream), 0);
	changed.phase = RECORD_PLANNED;
	CU_ASSERT_EQUAL(device_record_put_job(&record, &changed), 0);
	CU_ASSERT_EQUAL(record.nr_jobs, 2);
	check_same(device_record_job(&record, "commit0"), &changed);
	CU_ASSERT_FALSE(record_job_has_written(&changed));
	CU_ASSERT_TRUE(record_job_has_written(&commit));
	device_record_drop_job(&record, "commit0");
	CU_ASSERT_PTR_NULL(device_record_job(&record, "commit0"));
	check_same(device_record_job(&record, "stream0"), &stream);
	device_record_exit(&record);
}

/* LVM allows letters, digits and _+.-/=!:&# */
static void check_tag(const char *tag)
{
	CU_ASSERT(strlen(tag) < RECORD_TAG_BYTES);
	CU_ASSERT_EQUAL(strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "0123456789_+.-/=!:&#"), strlen(tag));
}

static void test_tags(void)
{
	char tag[RECORD_TAG_BYTES], error[RECORD_TAG_BYTES];
	struct device_record record = {};

	record_tag_job(&commit, tag);
	record_tag_job_error(&commit, error);
	check_tag(tag);
	check_tag(error);
	CU_ASSERT_EQUAL(record_tag_take_job(error, &record), 0); /* tags come in any order */
	CU_ASSERT_EQUAL(record_tag_take_job(tag, &record), 0);
	CU_ASSERT_EQUAL(record.nr_jobs, 1);
	check_same(device_record_job(&record, "commit0"), &commit);
	record_tag_job(&stream, tag);
	record_tag_job_error(&stream, error);
	CU_ASSERT_STRING_EQUAL(tag, "qchain.job=stream0:stream:writing:top.qcow2:");
	CU_ASSERT_STRING_EQUAL(error, "");
	CU_ASSERT_EQUAL(record_tag_take_job(tag, &record), 0);
	check_same(device_record_job(&record, "stream0"), &stream);
	device_record_exit(&record);
}

static void test_long_error(void)
{
	char tag[RECORD_TAG_BYTES];
	struct device_record record = {};
	struct record_job job = commit;

	memset(job.error, ' ', sizeof(job.error) - 1);
	record_tag_job_error(&job, tag);
	check_tag(tag);
	CU_ASSERT_EQUAL(record_tag_take_job(tag, &record), 0);
	CU_ASSERT_STRING_EQUAL(record.jobs[0].error, job.error);
	device_record_exit(&record);
}

static void test_wrong_tags(void)
{
	static const char *const wrong[] = {
		"qchain.job=", "qchain.job=a", "qchain.job=a:commit:soon:t:b",
		"qchain.job=a:commit:writing::b", "qchain.job=a=0:commit:writing:t:b",
		"qchain.job-error=", "qchain.jobs=a:commit:writing:t:b", "other",
	};
	struct device_record record = {};

	for (u32 i = 0; i < ARRAY_SIZE(wrong); i++)
		CU_ASSERT_EQUAL(record_tag_take_job(wrong[i], &record), 0);
	CU_ASSERT_EQUAL(record.nr_jobs, 0);
	device_record_exit(&record);
}

static void test_directory(void)
{
	char dir[] = "/tmp/qc-record-XXXXXX";
	struct device_record record = { .name = "vm7", .top = "top.qcow2" }, *found;
	struct qc_err err = {};
	u32 nr;

	CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
	device_record_put_job(&record, &stream);
	device_record_put_job(&record, &commit);
	strcpy(record.jobs[1].top, "mon.qcow2");
	CU_ASSERT_EQUAL(record_dir_save(dir, &record, &err), 0);
	CU_ASSERT_EQUAL(record_dir_load(dir, &found, &nr, &err), 0);
	CU_ASSERT_EQUAL(nr, 1);
	check_same(device_record_job(found, "stream0"), &stream);
	check_same(device_record_job(found, "commit0"), &record.jobs[1]);
	CU_ASSERT_FALSE(found->raw);
	record_list_free(found, nr);
	device_record_set_top(&record, "top.raw", true);
	CU_ASSERT_EQUAL(record_dir_save(dir, &record, &err), 0);
	CU_ASSERT_EQUAL(record_dir_load(dir, &found, &nr, &err), 0);
	CU_ASSERT_TRUE(found->raw);
	CU_ASSERT_STRING_EQUAL(found->top, "top.raw");
	record_list_free(found, nr);
	strcpy(record.jobs[0].top, "../top.qcow2"); /* leads elsewhere */
	CU_ASSERT_EQUAL(record_dir_save(dir, &record, &err), 0);
	CU_ASSERT_EQUAL(record_dir_load(dir, &found, &nr, &err), -EINVAL);
	record_dir_remove(dir, "vm7", &err);
	device_record_exit(&record);
	rmdir(dir);
}

static const struct unit_test tests[] = {
	{ "list of jobs", test_list },
	{ "tags", test_tags },
	{ "long error as a tag", test_long_error },
	{ "tags that are none", test_wrong_tags },
	{ "record of a directory", test_directory },
	{ NULL },
};

int main(void)
{
	return unit_main("record", tests);
}
