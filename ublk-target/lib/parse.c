// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads numbers, sizes, switches and choices as people type them. */
#include <qchain/parse.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Digits after the point of a size; more would not fit the arithmetic. */
#define MAX_FRACTION_DIGITS 18

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Leading digits of *@text; false when they overflow 64 bits. */
static bool take_digits(const char **text, u64 *value)
{
	*value = 0;
	for (; is_digit(**text); (*text)++) {
		if (__builtin_mul_overflow(*value, 10, value) ||
		    __builtin_add_overflow(*value, **text - '0', value))
			return false;
	}
	return true;
}

/* Log2 of the suffix's unit, -1: not a suffix. */
static int suffix_bits(const char *suffix)
{
	static const char letters[] = "bkmgtpe";
	const char *letter;

	if (!*suffix)
		return 0;
	letter = memchr(letters, *suffix | 0x20, sizeof(letters) - 1);
	if (!letter)
		return -1;
	if (suffix[1] && (letter == letters || strcasecmp(suffix + 1, "ib") != 0))
		return -1;
	return 10 * (letter - letters);
}

static int bad_size(const char *what, const char *text, struct qc_err *err)
{
	return qc_err_set(err, -EINVAL,
			  "%s: not a size (%s), expected a number of bytes or one with a suffix "
			  "K, M, G, T, P or E, such as 20G", what, text);
}

/* @whole and @fraction / 10^@digits units of 2^@bits bytes */
static int scale_size(const char *what, const char *text, u64 whole, u64 fraction, u32 digits,
		      int bits, u64 *result, struct qc_err *err)
{
	unsigned __int128 part = (unsigned __int128)fraction << bits;
	unsigned __int128 bytes = (unsigned __int128)whole << bits;

	for (; digits > 0; digits--) {
		if (part % 10)
			return qc_err_set(err, -EINVAL,
					  "%s: size is no whole number of bytes (%s); use a "
					  "smaller unit", what, text);
		part /= 10;
	}
	bytes += part;
	if (bytes >> 63)
		return qc_err_set(err, -ERANGE, "%s: size too large (%s), must be below 8E", what,
				  text);
	*result = bytes;
	return 0;
}

int parse_size(const char *what, const char *text, u64 *result, struct qc_err *err)
{
	const char *at = text, *point;
	u64 whole, fraction = 0;
	u32 digits = 0;
	int bits;

	if (!is_digit(*at))
		return bad_size(what, text, err);
	if (!take_digits(&at, &whole))
		return qc_err_set(err, -ERANGE, "%s: size too large (%s), must be below 8E", what,
				  text);
	if (*at == '.') {
		point = ++at;
		if (!is_digit(*at) || strspn(at, "0123456789") > MAX_FRACTION_DIGITS)
			return bad_size(what, text, err);
		take_digits(&at, &fraction);
		digits = at - point;
	}
	bits = suffix_bits(at);
	if (bits < 0)
		return bad_size(what, text, err);
	return scale_size(what, text, whole, fraction, digits, bits, result, err);
}

int parse_number(const char *what, const char *text, u64 least, u64 most, u64 *result,
		 struct qc_err *err)
{
	const char *at = text;
	u64 value;
	bool fits;

	fits = take_digits(&at, &value);
	if (at == text || *(at + strspn(at, "0123456789")))
		return qc_err_set(err, -EINVAL,
				  "%s: not a number (%s), expected one from %llu to %llu", what,
				  text, (unsigned long long)least, (unsigned long long)most);
	if (!fits || value < least || value > most)
		return qc_err_set(err, -ERANGE, "%s: number out of range (%s), must be %llu..%llu",
				  what, text, (unsigned long long)least, (unsigned long long)most);
	*result = value;
	return 0;
}

int parse_switch(const char *what, const char *text, bool *result, struct qc_err *err)
{
	static const char *const words[] = { "off", "on", "no", "yes", "false", "true", "0", "1" };

	for (u32 i = 0; i < ARRAY_SIZE(words); i++) {
		if (strcasecmp(text, words[i]) == 0) {
			*result = i & 1;
			return 0;
		}
	}
	return qc_err_set(err, -EINVAL, "%s: neither on nor off (%s), expected on or off", what,
			  text);
}

int parse_choice(const char *what, const char *text, const char *const *choices, u32 *result,
		 struct qc_err *err)
{
	char list[256] = "";
	size_t at = 0;

	for (u32 i = 0; choices[i]; i++) {
		if (strcmp(text, choices[i]) == 0) {
			*result = i;
			return 0;
		}
		if (at < sizeof(list))
			at += snprintf(list + at, sizeof(list) - at, "%s%s", i ? ", " : "",
				       choices[i]);
	}
	return qc_err_set(err, -EINVAL, "%s: value not known (%s), expected one of %s", what, text,
			  list);
}

bool parse_is_id(const char *text, u32 longest)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789-._";
	size_t len = strlen(text);

	return len && len <= longest && strspn(text, allowed) == len &&
	       strchr(allowed, *text) < strchr(allowed, '0');
}
