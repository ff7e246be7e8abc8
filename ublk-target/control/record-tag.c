// SPDX-License-Identifier: GPL-2.0-or-later
/* Merges that were begun, as tags of an LV: words without what LVM does not allow in tags. */
#include <qchain/record.h>

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * LVM allows letters, digits and _+.-/=!:&# in tags. Here ":" ends a field, and
 * "=XX" is the byte with that number, also for "=" and ":" themselves.
 */
static bool is_plain(char c)
{
	return isalnum((unsigned char)c) || strchr("_+.-/!&#", c);
}

/* Append @text as one field, cut where @tag is full; returns the new length. */
static size_t put_field(char *tag, size_t len, const char *text)
{
	for (; *text && len + 4 < RECORD_TAG_BYTES; text++) {
		if (is_plain(*text))
			tag[len++] = *text;
		else
			len += sprintf(tag + len, "=%02X", (unsigned char)*text);
	}
	tag[len] = 0;
	return len;
}

static int hex_byte(const char *text)
{
	char digits[3] = { text[0], text[0] ? text[1] : 0, 0 };

	return isxdigit((unsigned char)digits[0]) && isxdigit((unsigned char)digits[1]) ?
		       (int)strtoul(digits, NULL, 16) : -1;
}

/* The field at *@text; false: there is none, or it does not fit. *@text moves behind it. */
static bool take_field(const char **text, char *result, size_t bytes)
{
	size_t len = 0;
	int byte;

	while (**text && **text != ':' && len + 1 < bytes) {
		if (**text != '=') {
			result[len++] = *(*text)++;
			continue;
		}
		byte = hex_byte(*text + 1);
		if (byte <= 0)
			return false;
		result[len++] = byte;
		*text += 3;
	}
	result[len] = 0;
	if (**text == ':')
		(*text)++;
	else if (**text)
		return false;
	return true;
}

static bool parse_job(const char *text, struct record_job *job)
{
	char phase[16];

	return take_field(&text, job->id, sizeof(job->id)) && job->id[0] &&
	       take_field(&text, job->kind, sizeof(job->kind)) &&
	       take_field(&text, phase, sizeof(phase)) &&
	       !record_phase_parse(phase, &job->phase) &&
	       take_field(&text, job->top, sizeof(job->top)) && job->top[0] &&
	       take_field(&text, job->base, sizeof(job->base));
}

int record_tag_take_job(const char *tag, struct device_record *record)
{
	struct record_job job = { .phase = RECORD_PLANNED }, *known;
	const char *text;

	if (!strncmp(tag, RECORD_TAG_JOB, strlen(RECORD_TAG_JOB))) {
		if (!parse_job(tag + strlen(RECORD_TAG_JOB), &job))
			return 0;
		known = device_record_job(record, job.id);
		if (known)
			strcpy(job.error, known->error);
		return device_record_put_job(record, &job);
	}
	if (strncmp(tag, RECORD_TAG_JOB_ERROR, strlen(RECORD_TAG_JOB_ERROR)))
		return 0;
	text = tag + strlen(RECORD_TAG_JOB_ERROR);
	if (!take_field(&text, job.id, sizeof(job.id)) || !job.id[0])
		return 0;
	known = device_record_job(record, job.id);
	if (known)
		job = *known;
	take_field(&text, job.error, sizeof(job.error));
	return device_record_put_job(record, &job);
}

void record_tag_job(const struct record_job *job, char *tag)
{
	const char *const fields[] = { job->id, job->kind, record_phase_name(job->phase), job->top,
				       job->base };
	size_t len = sprintf(tag, RECORD_TAG_JOB);

	for (u32 i = 0; i < ARRAY_SIZE(fields); i++) {
		if (i && len + 2 < RECORD_TAG_BYTES)
			tag[len++] = ':';
		len = put_field(tag, len, fields[i]);
	}
}

void record_tag_job_error(const struct record_job *job, char *tag)
{
	size_t len = sprintf(tag, RECORD_TAG_JOB_ERROR);

	len = put_field(tag, len, job->id);
	tag[len++] = ':';
	put_field(tag, len, job->error);
	if (!job->error[0])
		tag[0] = 0;
}
