// SPDX-License-Identifier: GPL-2.0-or-later
/* How qchainctl speaks: JSON, errors, colour on terminals, the progress bar. */
#include "ctl.h"

#include "clock.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define DRAW_EVERY_NS 200000000ull

bool print_is_terminal(FILE *to)
{
	const char *term = getenv("TERM");

	return isatty(fileno(to)) && term && strcmp(term, "dumb") != 0;
}

const char *print_colour(FILE *to, enum print_colour colour)
{
	static const char *const sequences[] = {
		[COLOUR_NONE] = "\033[0m",  [COLOUR_GOOD] = "\033[32m",
		[COLOUR_WARN] = "\033[33m", [COLOUR_BAD] = "\033[31m",
		[COLOUR_STRONG] = "\033[1m", [COLOUR_FAINT] = "\033[2m",
	};
	const char *off = getenv("NO_COLOR");

	return print_is_terminal(to) && (!off || !*off) ? sequences[colour] : "";
}

void print_json(json_object *object_owned)
{
	puts(json_object_to_json_string_ext(object_owned, JSON_C_TO_STRING_PRETTY |
								  JSON_C_TO_STRING_SPACED |
								  JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(object_owned);
}

int print_error(const struct qc_err *err)
{
	fflush(stdout);
	fprintf(stderr, "%sqchainctl:%s %s\n", print_colour(stderr, COLOUR_BAD),
		print_colour(stderr, COLOUR_NONE),
		err->msg[0] ? err->msg : strerror(-err->code));
	return CTL_FAILED;
}

const char *print_size(u64 bytes, char *text)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double value = bytes;
	u32 unit = 0;

	while (value >= 1000 && unit + 1 < ARRAY_SIZE(units)) {
		value /= 1024;
		unit++;
	}
	snprintf(text, 32, "%.3g %s", value, units[unit]);
	return text;
}

const char *print_clean(const char *text, char *out)
{
	size_t n;

	for (n = 0; text[n] && n < PRINT_CLEAN_BYTES - 1; n++)
		out[n] = (unsigned char)text[n] < ' ' || text[n] == 0x7f ? '?' : text[n];
	out[n] = '\0';
	return out;
}

/* ---- progress ---------------------------------------------------------- */

static u32 terminal_columns(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col)
		return size.ws_col;
	return 80;
}

static void format_rate(const struct progress *progress, double per_second, char *text,
			size_t bytes)
{
	char size[32];

	if (progress->in_bytes)
		snprintf(text, bytes, "%s/s", print_size(per_second, size));
	else
		snprintf(text, bytes, "%.0f/s", per_second);
}

static void format_left(double seconds, char *text, size_t bytes)
{
	u64 left = seconds < 359999 ? seconds + 0.5 : 359999;

	snprintf(text, bytes, "%u:%02u:%02u left", (u32)(left / 3600), (u32)(left / 60 % 60),
		 (u32)(left % 60));
}

static void progress_draw(struct progress *progress, u64 done)
{
	double seconds = (now_ns() - progress->start_ns) / (double)NS_PER_SEC;
	double share = progress->total ? (double)done / progress->total : 1;
	double per_second = seconds > 0 ? done / seconds : 0;
	char rate[48], left[32], bar[41];
	u32 columns = terminal_columns();
	u32 width = columns > 100 ? 40 : columns > 80 ? 20 : 10;
	u32 full;

	share = share > 1 ? 1 : share;
	full = share * width;
	memset(bar, '#', full);
	memset(bar + full, '.', width - full);
	bar[width] = '\0';
	format_rate(progress, per_second, rate, sizeof(rate));
	format_left(per_second > 0 && done < progress->total ?
			    (progress->total - done) / per_second : 0, left, sizeof(left));
	fprintf(stderr, "\r\033[K%s [%s] %3.0f%% %s %s", progress->what, bar, share * 100, rate,
		left);
}

void progress_begin(struct progress *progress, const char *what, u64 total, bool in_bytes)
{
	*progress = (struct progress){
		.what = what,
		.total = total,
		.in_bytes = in_bytes,
		.terminal = print_is_terminal(stderr),
		.start_ns = now_ns(),
	};
	progress->drawn_ns = progress->start_ns;
}

void progress_update(struct progress *progress, u64 done)
{
	u64 now;

	if (!progress->terminal)
		return;
	now = now_ns();
	if (now - progress->drawn_ns < DRAW_EVERY_NS)
		return;
	progress->drawn_ns = now;
	progress_draw(progress, done);
}

void progress_end(struct progress *progress)
{
	if (progress->terminal && progress->drawn_ns != progress->start_ns)
		fprintf(stderr, "\r\033[K");
}
