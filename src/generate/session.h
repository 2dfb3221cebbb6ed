/* session.h: what generation needs of a session beside softprompt.h. */
#ifndef SP_GENERATE_SESSION_H
#define SP_GENERATE_SESSION_H

#include "softprompt.h"

const sp_model *sp_session_model(const sp_session *session);
const int32_t *sp_session_tokens(const sp_session *session); /* (sp_session_n_tokens): the text so far */
size_t sp_session_room(const sp_session *session);           /* tokens that still fit the model's context */

/* Logits (n_vocab) behind the last token, kept from the last append or computed now. ARGUMENT where there is no token yet. */
sp_status sp_session_last_logits(const float **out, sp_session *session);

#endif
